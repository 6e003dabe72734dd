"""The Hydra side: from what a user typed to typed run configs."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.arguments import read_overrides
from harness.config import (
    ALLOCATOR_KEYS,
    TIMEOUT_S,
    ConfigError,
    PartConfig,
    RunConfig,
    SteeringConfig,
    SweepConfig,
    TrackingConfig,
)
from harness.conversion import from_mapping, unknown_name
from harness.hydra_errors import explain
from harness.launching.chosen import is_of_launcher
from harness.own_code import is_file
from harness.runs.apart import allocator_facts, router_facts
from harness.runs.grid import Part
from harness.schema import register_schema

_STEERING_KEYS = SteeringConfig.__dataclass_fields__.keys() | {"sweep"}
_TAKE_ONE_VALUE = SteeringConfig.__dataclass_fields__.keys() | {"experiment"}


@dataclass(frozen=True, slots=True)
class Command:
    """What a user typed: keys with one value, keys with several (swept), the rest verbatim.

    verbatim: overrides in Hydra's own syntax that add or delete (`+key=...`, `~key`).
    arguments: all of them as typed, but for launcher: which says where runs are done, and nothing
    of what they are.
    """

    fixed: Mapping[str, str]
    swept: Mapping[str, Sequence[str]]
    verbatim: tuple[str, ...]
    arguments: tuple[str, ...]
    launcher: tuple[str, ...] = ()

    def base_overrides(self) -> list[str]:
        """Overrides of a config before any axis is chosen."""
        return [f"{key}={value}" for key, value in self.fixed.items()] + list(self.verbatim)

    def without_allocator_options(self) -> Command:
        """For what is composed before a part has chosen the allocator that has such options."""
        fixed = {k: v for k, v in self.fixed.items() if not k.startswith("allocator.")}
        return replace(self, fixed=fixed)


@dataclass(frozen=True, slots=True)
class Study:
    """An experiment as composed: its question, its parts, and what to draw of it."""

    name: str
    question: str
    figures: tuple[str, ...]
    preset: str
    parts: tuple[Part, ...]
    dry_run: bool
    results_dir: Path
    tracking: TrackingConfig
    timeout_s: float = TIMEOUT_S


def parse_command(arguments: Sequence[str]) -> Command:
    """Sort overrides by kind; an allocator given as FILE.py:CLASS becomes a choice of its group."""
    register_schema()
    launcher = tuple(argument for argument in arguments if is_of_launcher(argument))
    arguments = tuple(argument for argument in arguments if not is_of_launcher(argument))
    fixed: dict[str, str] = {}
    swept: dict[str, Sequence[str]] = {}
    verbatim: list[str] = []
    for override in read_overrides(arguments):
        key = override.get_key_element()
        if not re.match(r"[A-Za-z_]", key):
            verbatim.append(override.input_line or "")
        elif override.is_sweep_override():
            swept[key] = _swept_values(override)
        else:
            fixed[key] = _value_text(override)
    for key, values in swept.items():
        if key.split(".", 1)[0] in _TAKE_ONE_VALUE:
            raise ConfigError(f"{key}={','.join(values)}: takes one value; give a command for each")
    return Command(fixed, swept, tuple(verbatim), arguments, launcher)


@contextmanager
def hydra_session() -> Iterator[None]:
    """Within it, `compose_run` and `compose_study` may be called."""
    register_schema()
    with initialize_config_module("conf", version_base="1.3"):
        yield


def compose_study(command: Command) -> Study:
    """The experiment that `command` names, or the single run it describes."""
    values = _compose(command.without_allocator_options().base_overrides())
    keys = _STEERING_KEYS | RunConfig.__dataclass_fields__.keys()
    if unknown := values.keys() - keys:
        raise ConfigError(unknown_name(min(unknown), keys, "key"))
    sweep = from_mapping(SweepConfig, values["sweep"], "sweep.")
    steering = {key: values[key] for key in _STEERING_KEYS if key != "sweep"}
    chosen = from_mapping(SteeringConfig, steering)
    if chosen.preset not in sweep.presets:
        raise ConfigError("preset: " + unknown_name(chosen.preset, sweep.presets, "value"))
    parts = [
        from_mapping(PartConfig, part, f"sweep.presets.{chosen.preset}[{index}].")
        for index, part in enumerate(sweep.presets[chosen.preset])
    ]
    included = [_included(command, name, sweep.name) for name in sweep.include]
    own_parts = [Part(p.name, p.set, p.axes, tuple(p.unless), p.search) for p in parts]
    figures = [*itertools.chain.from_iterable(study.figures for study in included), *sweep.figures]
    return Study(
        name=sweep.name,
        question=sweep.question,
        figures=tuple(dict.fromkeys(figures)),
        preset=chosen.preset,
        parts=(*itertools.chain.from_iterable(study.parts for study in included), *own_parts),
        dry_run=chosen.dry_run,
        results_dir=Path(chosen.results_dir).expanduser(),
        tracking=chosen.tracking,
        timeout_s=chosen.timeout_s,
    )


def _included(command: Command, name: str, by: str) -> Study:
    """The experiment `name`, which the experiment `by` includes."""
    if name == by:
        raise ConfigError(f"sweep.include: experiment={by} includes itself")
    return compose_study(replace(command, fixed={**command.fixed, "experiment": name}))


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The typed config of one run. Raises ConfigError, one line, for whatever is wrong in it."""
    return run_config(_compose(overrides))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """A composed config, as plain mappings, without the keys that steer the sweep."""
    keys = RunConfig.__dataclass_fields__
    chosen = {key: value for key, value in values.items() if key in keys}
    allocator = dict(chosen["allocator"])
    known = {key: allocator.pop(key) for key in ALLOCATOR_KEYS}
    chosen["allocator"] = {**known, "options": allocator}
    return _with_facts(from_mapping(RunConfig, chosen))


def _with_facts(config: RunConfig) -> RunConfig:
    """What own code says of itself, beside its settings. Raises ConfigError where there is none."""
    allocator, cluster = config.allocator, config.cluster
    if is_file(allocator.name):
        allocator = replace(allocator, facts=allocator_facts(allocator.name))
    if is_file(cluster.router):
        cluster = replace(cluster, facts=router_facts(cluster.router))
    return replace(config, allocator=allocator, cluster=cluster)


class Composer:
    """Composes run configs, each distinct choice of groups through Hydra once.

    Hydra takes some 50 ms a config, and OmegaConf 20 to copy and resolve one; a sweep's cells
    mostly differ in single values, which are set on plain values. Valid within `hydra_session`.
    """

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(self, overrides: Sequence[str]) -> RunConfig:
        """`compose_run(overrides)`."""
        try:
            parsed = [_parse(override) for override in overrides]
            base = self._base(tuple(o.input_line or "" for o in parsed if not _is_plain_value(o)))
            values = base
            for override in filter(_is_plain_value, parsed):
                path = override.get_key_element().split(".")
                values = _with_value(values, path, override.value())
            return run_config(values)
        except (HydraException, ConfigError, _NotPlainError):
            return compose_run(overrides)  # whatever is wrong with them, in Hydra's words

    def _base(self, choices: tuple[str, ...]) -> dict[str, Any]:
        if choices not in self._bases:
            self._bases[choices] = _compose(choices)
        return self._bases[choices]


class _NotPlainError(Exception):
    """A value that takes OmegaConf to be set: a group's, an interpolation, a key that is new."""


@functools.lru_cache(maxsize=10_000)
def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _is_plain_value(override: Override) -> bool:
    """`group.key=value`: sets one value and chooses no file."""
    key = override.get_key_element()
    return re.fullmatch(r"\w+(\.\w+)+", key) is not None and not override.is_sweep_override()


def _with_value(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings in which `path` has another value; all else is shared."""
    key, *rest = path
    if key not in values:
        raise _NotPlainError
    if rest:
        if not isinstance(values[key], Mapping):
            raise _NotPlainError
        return {**values, key: _with_value(values[key], rest, value)}
    if isinstance(values[key], Mapping) or not _is_literal(value):
        raise _NotPlainError
    return {**values, key: value}


def _is_literal(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_literal, value))
    return value is None or isinstance(value, (int, float)) or _is_plain_text(value)


def _is_plain_text(value: Any) -> bool:
    return type(value) is str and not ("${" in value or value == "???" or "\\" in value)


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        config = compose("config", overrides=list(overrides))
        values = OmegaConf.to_container(config, resolve=True)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # ValueError: Hydra's for a number where a group's choice is wanted
        raise ConfigError(explain(error, overrides)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _swept_values(override: Override) -> list[str]:
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(
            f"{override.input_line}: list the values instead (a,b,c), or give range(start,stop)"
        ) from error


def _value_text(override: Override) -> str:
    line = override.input_line or ""
    return line.split("=", 1)[1] if "=" in line else ""

"""The Hydra side: from what a user typed to typed run configs."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from allocators import discovery
from harness.config import (
    ConfigError,
    RunConfig,
    TrackingConfig,
    from_mapping,
    to_mapping,
    unknown_name,
)
from harness.runs.grid import Part

_ALLOCATOR_KEYS = ("name", "expected", "expected_bias", "expected_spread")


@dataclass(frozen=True, slots=True)
class Command:
    """What a user typed: keys with one value, keys with several (swept), the rest verbatim.

    verbatim: overrides in Hydra's own syntax that add or delete (`+key=...`, `~key`).
    """

    fixed: Mapping[str, str]
    swept: Mapping[str, Sequence[str]]
    verbatim: tuple[str, ...]

    def base_overrides(self) -> list[str]:
        """Overrides of a config before any axis is chosen."""
        return [f"{key}={value}" for key, value in self.fixed.items()] + list(self.verbatim)


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


def parse_command(arguments: Sequence[str]) -> Command:
    """Sort overrides by kind; an allocator given as FILE.py:CLASS becomes a choice of its group."""
    register_schema()
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise ConfigError(f"cannot read the arguments: {_first_line(error)}") from error
    fixed: dict[str, str] = {}
    swept: dict[str, Sequence[str]] = {}
    verbatim: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        if not re.match(r"[A-Za-z_]", key):
            verbatim.append(override.input_line or "")
        elif override.is_sweep_override():
            swept[key] = [_admit(key, value) for value in override.sweep_string_iterator()]
        else:
            fixed[key] = _admit(key, _value_text(override))
    return Command(fixed, swept, tuple(verbatim))


@contextmanager
def hydra_session() -> Iterator[None]:
    """Within it, `compose_run` and `compose_study` may be called."""
    register_schema()
    with initialize_config_module("conf", version_base="1.3"):
        yield


def compose_study(command: Command) -> Study:
    """The experiment that `command` names, or the single run it describes."""
    values = _compose(command.base_overrides())
    sweep = values["sweep"]
    preset = values["preset"]
    presets = sweep["presets"]
    if preset not in presets:
        raise ConfigError("preset: " + unknown_name(str(preset), presets, "value"))
    parts = tuple(
        Part(str(part.get("name", "runs")), part.get("set") or {}, part.get("axes") or {})
        for part in presets[preset]
    )
    return Study(
        name=str(sweep["name"]),
        question=str(sweep["question"]),
        figures=tuple(sweep["figures"]),
        preset=str(preset),
        parts=parts,
        dry_run=bool(values["dry_run"]),
        results_dir=Path(values["results_dir"]),
        tracking=from_mapping(TrackingConfig, values["tracking"], "tracking."),
    )


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The typed config of one run. Raises ConfigError, one line, for whatever is wrong in it."""
    return run_config(_compose(overrides))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """A composed config, as plain mappings, without the keys that steer the sweep."""
    keys = RunConfig.__dataclass_fields__
    chosen = {key: value for key, value in values.items() if key in keys}
    allocator = dict(chosen["allocator"])
    known = {key: allocator.pop(key) for key in _ALLOCATOR_KEYS}
    chosen["allocator"] = {**known, "options": allocator}
    return from_mapping(RunConfig, chosen)


def register_schema() -> None:
    """Tell Hydra every key with its default, and every strategy that discovery finds."""
    store = ConfigStore.instance()
    defaults = to_mapping(RunConfig())
    defaults["allocator"].pop("options")
    store.store(
        name="schema",
        node={
            **defaults,
            "tracking": to_mapping(TrackingConfig()),
            "preset": "quick",
            "dry_run": False,
            "results_dir": "results",
            "sweep": {
                "name": "single",
                "question": "",
                "figures": [],
                "presets": {"quick": [{}], "full": [{}]},
            },
        },
    )
    presets = {file.name for file in (importlib.resources.files("conf") / "allocator").iterdir()}
    for name in discovery.available():
        _store_allocator(name, name, in_group=f"{name}.yaml" not in presets)
    store.store(group="hydra/help", name="kvarena", node=_help())


def _store_allocator(choice: str, name: str, *, in_group: bool) -> None:
    cls = discovery.load(name)
    options = {key: option.default for key, option in discovery.options(cls).items()}
    store = ConfigStore.instance()
    store.store(group="allocator/options", name=choice, node={"name": name, **options})
    if in_group:
        store.store(group="allocator", name=choice, node={"name": name, **options})


def _admit(key: str, value: str) -> str:
    """Make `allocator=FILE.py:CLASS` a choice that Hydra can select, and return its name."""
    if key != "allocator" or ".py:" not in value:
        return value
    choice = re.sub(r"[^A-Za-z0-9]+", "_", value).strip("_")
    try:
        _store_allocator(choice, value, in_group=True)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return choice


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        config = compose("config", overrides=list(overrides))
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's many-line error as one line with the nearest names."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1)
        return unknown_name(key, _known_keys(overrides), "key")
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, choice = found.groups()
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return f"{group}: " + unknown_name(choice, options, "value")
    return _first_line(error)


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """Every dotted key that the config has, its groups' choices being what they are."""
    groups = [o for o in overrides if "." not in o.split("=", 1)[0] and not o.startswith("+")]
    keys: list[str] = []

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            keys.append(prefix + str(key))
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    for chosen in (groups, []):
        try:
            config = OmegaConf.to_container(compose("config", overrides=chosen))
        except (HydraException, OmegaConfBaseException):
            continue
        assert isinstance(config, dict)
        walk({str(key): value for key, value in config.items()}, "")
        break
    return keys


def _value_text(override: Override) -> str:
    line = override.input_line or ""
    return line.split("=", 1)[1] if "=" in line else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _help() -> dict[str, str]:
    header = (
        "kvarena: KV-cache allocation strategies compete under one decode engine.\n\n"
        "  python -m harness                                  one run, one summary\n"
        "  python -m harness experiment=sweep_page_size       a sweep, its table and figures\n"
        "  python -m harness experiment=compare_allocators dry_run=true\n"
        "  python -m harness allocator=paged,paged_prefix kv.page_size=8,16,32\n"
        "  python -m harness allocator=./mine.py:Mine workload=chat\n"
    )
    template = (
        "${hydra.help.header}\n== Choices (group=choice) ==\n$APP_CONFIG_GROUPS\n"
        "== Keys and their values (key=value; key=a,b,c sweeps) ==\n$CONFIG\n"
    )
    return {"app_name": "kvarena", "header": header, "footer": "", "template": template}

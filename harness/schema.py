"""What Hydra is told: every key with its default, and every strategy."""

from __future__ import annotations

import hashlib
import importlib.resources
import traceback
from pathlib import Path

from hydra.core.config_store import ConfigStore

from allocators import discovery
from harness.config import ALLOCATOR_KEYS, ConfigError, RunConfig, SteeringConfig, SweepConfig
from harness.conversion import to_mapping


def register_schema() -> None:
    """Tell Hydra every key with its default, and every strategy that discovery finds."""
    store = ConfigStore.instance()
    defaults = to_mapping(RunConfig())
    defaults["allocator"].pop("options")
    store.store(
        name="schema",
        node={
            **defaults,
            **to_mapping(SteeringConfig()),
            "sweep": to_mapping(SweepConfig()),
        },
    )
    presets = {file.name for file in (importlib.resources.files("conf") / "allocator").iterdir()}
    for name in discovery.available():
        _store_allocator(name, name, in_group=f"{name}.yaml" not in presets)


def admit_files(argument: str) -> str:
    """`allocator=FILE.py:CLASS` with a choice in its place that Hydra can select, any other
    argument as it is. Raises ConfigError for a file that defines no such allocator.
    """
    key, _, values = argument.partition("=")
    if key != "allocator":
        return argument
    return f"{key}={','.join(_admit(value.strip()) for value in values.split(','))}"


def allocator_spec(choice: str) -> str:
    """The allocator that `choice` of the group stands for: FILE.py:CLASS for one of
    `admit_files`, itself for any other."""
    groups = ConfigStore.instance().repo["allocator"]["options"]
    node = groups.get(f"{choice}.yaml")
    return choice if node is None else str(node.node["name"])


def _admit(value: str) -> str:
    spec = value.strip("'\"")
    if not (spec.endswith(".py") or ".py:" in spec):
        return value
    choice = f"file_{hashlib.sha256(spec.encode()).hexdigest()[:12]}"
    try:
        _store_allocator(choice, spec, in_group=True)
    except Exception as error:  # it is the user's code: whatever it raises at import ends it here
        raise ConfigError(f"allocator={spec}: {_blame(error, spec.rsplit(':', 1)[0])}") from error
    return choice


def _store_allocator(choice: str, name: str, *, in_group: bool) -> None:
    options = _default_options(name)
    store = ConfigStore.instance()
    store.store(group="allocator/options", name=choice, node={"name": name, **options})
    if in_group:
        store.store(group="allocator", name=choice, node={"name": name, **options})


def _default_options(name: str) -> dict[str, object]:
    options = discovery.options(discovery.load(name))
    for key, option in options.items():
        if key in ALLOCATOR_KEYS:
            raise ValueError(f"its option {key!r} has the name of a key that every allocator has")
        if option.default is option.empty:
            raise ValueError(f"its option {key!r} needs a default value")
    return {key: option.default for key, option in options.items()}


def _blame(error: Exception, file: str) -> str:
    """One line; for an error in the user's own file with the line it comes from."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, ValueError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {text}"

"""What Hydra is told: every key with its default, and every strategy."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from pathlib import Path

from hydra.core.config_store import ConfigStore

from allocators import discovery
from harness.config import RunConfig, SteeringConfig, SweepConfig
from harness.conversion import to_mapping
from harness.own_code import file_of, is_file
from harness.runs.apart import allocator_facts


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
    """`allocator=FILE.py:CLASS` with a choice in its place that Hydra can select, and names of
    files in quotes where Hydra would not read them; any other argument as it is. Raises ConfigError
    for a file that defines no such allocator.
    """
    key, equals, values = argument.partition("=")
    if not equals:
        return argument
    if key == "allocator":
        return f"{key}={','.join(_admit(value.strip()) for value in split_values(values))}"
    return f"{key}={','.join(map(_quoted, split_values(values)))}"


def split_values(text: str) -> list[str]:
    """`text` at its commas, but for those in the name of a file that is there."""
    pieces, found = text.split(","), []
    while pieces:
        lengths = range(len(pieces), 1, -1)
        count = next((n for n in lengths if _is_there(",".join(pieces[:n]))), 1)
        found.append(",".join(pieces[:count]))
        del pieces[:count]
    return found


def _is_there(text: str) -> bool:
    """Whether `text` names a file or a folder, or FILE.py:NAME."""
    text = text.strip("'\"")
    try:
        is_spec = re.fullmatch(r".*\.py:\w+", text) is not None
        return (file_of(text) if is_spec else Path(text).expanduser()).exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, nobody's home
        return False


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value) or value[:1] in "'\"" or not _is_there(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


_PLAIN = re.compile(r"[\w./:~+-]*")
"""What Hydra reads without quotes."""


def allocator_spec(choice: str) -> str:
    """The allocator that `choice` of the group stands for: FILE.py:CLASS for one of
    `admit_files`, itself for any other."""
    groups = ConfigStore.instance().repo["allocator"]["options"]
    node = groups.get(f"{choice}.yaml")
    return choice if node is None else str(node.node["name"])


def _admit(value: str) -> str:
    spec = value.strip("'\"")
    if not is_file(spec):
        return value
    choice = f"file_{hashlib.sha256(spec.encode()).hexdigest()[:12]}"
    _store_allocator(choice, spec, in_group=True)
    return choice


def _store_allocator(choice: str, name: str, *, in_group: bool) -> None:
    options = dict(allocator_facts(name).defaults)
    store = ConfigStore.instance()
    store.store(group="allocator/options", name=choice, node={"name": name, **options})
    if in_group:
        store.store(group="allocator", name=choice, node={"name": name, **options})

"""What may follow on a command line of kvarena: for a shell's completion.

    python -m experiments.completion WORD ...

prints the words that the last WORD, perhaps empty, may become, a line each. The first words are
those of the command line: `kvarena`, `python -m harness` or `python -m experiments`. Nothing heavy
is imported, since a person waits for it; what a command takes is read from its source.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import importlib.util
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from allocators import discovery
from experiments import commands
from harness.config import RunConfig, SteeringConfig
from harness.workloads import config as workload_choices

FLAGS = ("--help", "--cfg")

_PRESETS = ("quick", "full", "gpu")
_WORKLOAD_KEYS = {
    "lengths": workload_choices.LENGTHS,
    "arrivals": workload_choices.ARRIVALS,
    "sharing": workload_choices.SHARING,
    "output": workload_choices.OUTPUTS,
    "early_stopping": workload_choices.EARLY_STOPPING,
}


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` may become, in order; what ends in `=` or `.` is to be gone on."""
    program, *arguments = words
    if Path(program).name.startswith("python"):
        if len(arguments) < 3 or arguments[0] != "-m":
            return []
        program, *arguments = arguments[1:]
    if Path(program).name == "harness":
        return _of_keys(arguments[-1])
    if Path(program).name == "experiments":
        return _of_commands(arguments)
    if len(arguments) == 1:  # kvarena takes both
        return _of_commands(arguments) + _of_keys(arguments[0])
    return _of_keys(arguments[-1]) if "=" in arguments[0] else _of_commands(arguments)


def _of_keys(word: str) -> list[str]:
    """A key up to its next dot, or the values of one; after a comma further values."""
    if word.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(word)]
    key, equals, values = word.partition("=")
    if equals:
        earlier, comma, value = values.rpartition(",")
        given = {value for value in earlier.split(",") if comma}
        known = [choice for choice in choices().get(key, ()) if choice not in given]
        return [f"{key}={earlier}{comma}{c}" for c in known if c.startswith(value)]
    heads = {}
    for name in choices():
        if name.startswith(word):
            dot = name.find(".", len(word))
            heads[name[: dot + 1] if dot >= 0 else f"{name}="] = None
    return list(heads)


def choices() -> dict[str, tuple[str, ...]]:
    """Every key, with its values where these are few."""
    found = {f"{group}": names for group, names in _groups().items()}
    found |= dict(_leaves(RunConfig, "")) | dict(_leaves(SteeringConfig, ""))
    found["preset"] = _PRESETS
    found["workload.format"] = tuple(_modules("harness.workloads.traces"))
    for key, values in _WORKLOAD_KEYS.items():
        found[f"workload.{key}"] = values
    for cls in discovery.available().values():
        known = discovery.option_choices(cls)
        for option in discovery.options(cls):
            found[f"allocator.{option}"] = tuple(map(str, known.get(option, ())))
    return found


def _groups() -> Mapping[str, tuple[str, ...]]:
    """conf/GROUP/NAME.yaml; strategies are found without one."""
    groups = {
        group.name: tuple(sorted(f.name[:-5] for f in group.iterdir() if f.name.endswith(".yaml")))
        for group in importlib.resources.files("conf").iterdir()
        if group.is_dir() and not group.name.startswith("_")
    }
    groups["allocator"] = tuple(discovery.available())
    return dict(sorted(groups.items()))


def _leaves(cls: type, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys of a config's dataclass, those of its groups with a dot."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(hint, f"{prefix}{name}.")
        elif name not in ("name", "kind", "options"):  # which the group itself sets
            yield prefix + name, _values(hint)


def _values(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return tuple(value for part in typing.get_args(hint) for value in _values(part))
    return ()


def _of_commands(arguments: Sequence[str]) -> list[str]:
    """A command; of one its options, and names of what is stored in results/."""
    word = arguments[-1]
    if len(arguments) == 1:
        known: Iterable[str] = commands.available()
    elif arguments[0] not in commands.available():
        known = ()
    elif word.startswith("-"):
        known = ("--help", *_options(arguments[0]))
    else:
        known = sorted(path.parent.name for path in Path("results").glob("*/studies"))
    return [name for name in known if name.startswith(word)]


def _options(command: str) -> list[str]:
    """The options that a command's module gives to argparse, as its source has them."""
    spec = importlib.util.find_spec(f"{commands.__name__}.{command}")
    assert spec is not None and spec.origin is not None
    calls = [
        node
        for node in ast.walk(ast.parse(Path(spec.origin).read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
    ]
    names = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return sorted(str(name) for name in names if str(name).startswith("--"))


def _modules(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return [info.name for info in pkgutil.iter_modules(spec.submodule_search_locations)]


if __name__ == "__main__":
    print("\n".join(candidates(sys.argv[1:])))

"""From an experiment's axes to the list of its runs, as lists of overrides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.config import SearchConfig

Takes = Callable[[str, str], bool]
"""Whether an allocator takes a key of the form `allocator.OPTION`."""

DEFAULT_ALLOCATOR = "paged"


@dataclass(frozen=True, slots=True)
class Part:
    """A full grid within an experiment: every combination of `axes` over the settings `set`.

    unless: keys; a part is left out when the user sets one of them, because it is about
    particular values of them (the contiguous reference lines, say, of allocators). search: made in
    each combination; a value that the user gives its key takes its place.
    """

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unless: tuple[str, ...] = ()
    search: SearchConfig | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination: the part it belongs to and its `key=value` overrides; search: for the
    value of one key more."""

    part: str
    overrides: tuple[str, ...]
    search: SearchConfig | None = None


def expand(
    parts: Sequence[Part],
    fixed: Mapping[str, str],
    swept: Mapping[str, Sequence[str]],
    takes: Takes = lambda allocator, key: True,
) -> list[Cell]:
    """Every cell of every part, once, with the user's own choices over the experiment's.

    fixed, swept: what the user typed, one value or several a key. A key the user gave replaces
    the experiment's setting or axis of that name; cells that become equal are run once. A cell
    whose allocator does not take a key goes without it, unless no cell's does.
    """
    cells: dict[tuple[tuple[str, ...], SearchConfig | None], Cell] = {}
    given = [key for key in (*fixed, *swept) if key.startswith("allocator.")]
    chosen = chosen_allocators(parts, fixed, swept)
    optional = {key for key in given if any(takes(allocator, key) for allocator in chosen)}
    for part in parts:
        if any(key in fixed or key in swept for key in part.unless):
            continue
        axes: dict[str, Sequence[Any]] = {
            key: values
            for key, values in part.axes.items()
            if key not in fixed and key not in swept
        }
        axes |= swept
        search = part.search
        if search is not None and (search.key in fixed or search.key in swept):
            search = None
        settings = [
            f"{key}={to_override(value)}"
            for key, value in part.set.items()
            if key not in fixed and key not in swept
        ]
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            known = {**part.set, **point, **fixed}
            allocator = str(known.get("allocator", DEFAULT_ALLOCATOR))
            left_out = {key for key in optional if not takes(allocator, key)}
            own = [f"{k}={to_override(v)}" for k, v in point.items() if k not in left_out]
            typed = [f"{key}={value}" for key, value in fixed.items() if key not in left_out]
            overrides = tuple(_groups_first([*settings, *own]) + typed)
            cells.setdefault((overrides, search), Cell(part.name, overrides, search))
    return list(cells.values())


def chosen_allocators(
    parts: Sequence[Part], fixed: Mapping[str, str], swept: Mapping[str, Sequence[str]]
) -> set[str]:
    """Every allocator that some cell may have."""
    key = "allocator"
    if key in fixed:
        return {fixed[key]}
    if key in swept:
        return set(swept[key])
    return {
        str(name)
        for part in parts
        for name in part.axes.get(key, (part.set.get(key, DEFAULT_ALLOCATOR),))
    }


def to_override(value: Any) -> str:
    """A YAML value in Hydra's override syntax."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _groups_first(overrides: list[str]) -> list[str]:
    """`allocator=x` before `allocator.fit=y`, for readers; Hydra minds no order."""
    return sorted(overrides, key=lambda override: "." in override.split("=", 1)[0])

"""Cells of one study beside the cells of another: the same settings, but for what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.runs.jobs import Job, strategy_label
from harness.runs.varied_settings import as_text, effective_settings, short_name

_NOT_SETTINGS = ("seed", "repetitions")

Settings = Mapping[str, str]
"""Dotted keys with their values as text, `-` for none."""


class Cell(NamedTuple):
    """Runs of one setting in both studies; they differ by seed alone."""

    name: str
    before: tuple[Job, ...]
    after: tuple[Job, ...]


class Change(NamedTuple):
    """A key that has another value in the second study. cells: where; empty for everywhere."""

    key: str
    before: str
    after: str
    cells: tuple[str, ...]


class Matching(NamedTuple):
    """changes: of settings. sampling: of seeds and repetitions, which run ids tell apart, too.
    other_ids: runs of equal cell, seed and repetitions have other run ids. only_before,
    only_after: names of cells that the other study lacks."""

    cells: tuple[Cell, ...]
    changes: tuple[Change, ...]
    sampling: tuple[Change, ...]
    other_ids: bool
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


class _Group(NamedTuple):
    settings: Settings
    jobs: tuple[Job, ...]


def match(before: Sequence[Job], after: Sequence[Job]) -> Matching:
    """Pair the cells of two studies.

    Cells are paired by the values of all keys that vary within either study. A key whose values
    are not the same in both is left out where each study has its cells without it, if that pairs
    more of them: such a key is what changed. So two single runs are paired whatever they are.
    """
    first, second = _groups(before), _groups(after)
    keys = _matching_keys(first, second)
    left = {_values(group, keys): group for group in first}
    right = {_values(group, keys): group for group in second}
    names = _names(keys, left, right)
    shared = [values for values in left if values in right]
    cells = [Cell(names[each], left[each].jobs, right[each].jobs) for each in shared]
    differences = [
        (names[each], _differences(left[each].settings, right[each].settings)) for each in shared
    ]
    return Matching(
        tuple(cells),
        tuple(_changes(differences)),
        tuple(_changes([(cell.name, _sampling(cell)) for cell in cells])),
        any(_have_other_ids(cell) for cell in cells),
        tuple(names[values] for values in left if values not in right),
        tuple(names[values] for values in right if values not in left),
    )


def settings_of(job: Job) -> dict[str, str]:
    """What tells a run's cell from others, by dotted key as the command line has it: an option of
    the allocator stands in `allocator`, beside its name."""
    values: dict[str, Any] = effective_settings(job.config)
    return {
        key.replace("allocator.options.", "allocator."): as_text(value)
        for key, value in values.items()
        if key not in _NOT_SETTINGS
    }


def _groups(jobs: Iterable[Job]) -> list[_Group]:
    """Jobs by cell, in order."""
    found: dict[tuple[tuple[str, str], ...], list[Job]] = {}
    for job in jobs:
        found.setdefault(tuple(sorted(settings_of(job).items())), []).append(job)
    return [_Group(dict(settings), tuple(group)) for settings, group in found.items()]


def _matching_keys(first: Sequence[_Group], second: Sequence[_Group]) -> list[str]:
    """All keys that vary within a study, less those without which more cells are paired."""
    keys = sorted({key for groups in (first, second) for key in _varying(groups)})
    best, most = keys, _num_shared(first, second, keys)
    while most < min(len(first), len(second)):
        fewer = [
            rest
            for key in keys
            if _column(first, key) != _column(second, key)
            and _are_cells(first, rest := [each for each in keys if each != key])
            and _are_cells(second, rest)
        ]
        if not fewer:
            break
        keys = max(fewer, key=lambda rest: _num_shared(first, second, rest))
        if _num_shared(first, second, keys) > most:
            best, most = keys, _num_shared(first, second, keys)
    return best


def _varying(groups: Sequence[_Group]) -> set[str]:
    keys = {key for group in groups for key in group.settings}
    return {key for key in keys if len(_column(groups, key)) > 1}


def _column(groups: Sequence[_Group], key: str) -> set[str]:
    return {group.settings.get(key, "-") for group in groups}


def _are_cells(groups: Sequence[_Group], keys: Sequence[str]) -> bool:
    return len({_values(group, keys) for group in groups}) == len(groups)


def _num_shared(first: Sequence[_Group], second: Sequence[_Group], keys: Sequence[str]) -> int:
    left, right = ({_values(group, keys) for group in groups} for groups in (first, second))
    return len(left & right)


def _values(group: _Group, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(group.settings.get(key, "-") for key in keys)


_Values = tuple[str, ...]
"""A cell's, of the keys that cells are paired by."""


def _names(
    keys: Sequence[str], left: Mapping[_Values, _Group], right: Mapping[_Values, _Group]
) -> dict[_Values, str]:
    """No two cells have the same: what short names leave out is added where they would."""
    by_name: dict[str, list[_Values]] = {}
    for values in dict.fromkeys([*left, *right]):
        groups = [side[values] for side in (left, right) if values in side]
        by_name.setdefault(_name(keys, groups), []).append(values)
    found = {}
    for name, alike in by_name.items():
        varying = [index for index in range(len(keys)) if len({each[index] for each in alike}) > 1]
        for values in alike:
            added = [f"{_word(keys, index)} {values[index]}" for index in varying]
            found[values] = " · ".join(filter(None, [name, *added]))
    return found


def _word(keys: Sequence[str], index: int) -> str:
    """A key as short as no other of `keys`."""
    short = short_name(keys[index])
    return short if [short_name(key) for key in keys].count(short) == 1 else keys[index]


def _name(keys: Sequence[str], groups: Sequence[_Group]) -> str:
    """What tells a cell from others, as short as in tables."""
    settings = groups[0].settings
    labels = {strategy_label(group.jobs[0].config.allocator) for group in groups}
    own_strategy = any(key.startswith("allocator.") for key in keys)
    words = []
    if own_strategy or not keys:
        words.append(min(labels) if len(labels) == 1 else settings["allocator.name"])
    for key in keys:
        group = key.split(".", 1)[0]
        is_implied = group == "allocator" or (group == "attention" and own_strategy)
        is_implied |= group == "model" and key != "model.name"
        if not is_implied and settings.get(key, "-") != "-":
            words.append(f"{short_name(key)} {settings[key]}")
    return " · ".join(words)


def _differences(before: Settings, after: Settings) -> list[tuple[str, str, str]]:
    """Keys with both values; another model is named, its keys are not."""
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    if "model.name" in keys:
        keys = [key for key in keys if not key.startswith("model.") or key == "model.name"]
    return [(key, before.get(key, "-"), after.get(key, "-")) for key in keys]


def _sampling(cell: Cell) -> list[tuple[str, str, str]]:
    found = []
    for key in _NOT_SETTINGS:
        sides = [sorted({getattr(job.config, key) for job in jobs}) for jobs in cell[1:]]
        if sides[0] != sides[1]:
            before, after = (", ".join(map(str, values)) for values in sides)
            found.append((key, before, after))
    return found


def _have_other_ids(cell: Cell) -> bool:
    left, right = (
        {(job.config.seed, job.config.repetitions): job.run_id for job in jobs}
        for jobs in (cell.before, cell.after)
    )
    return any(left[each] != right[each] for each in left.keys() & right.keys())


def _changes(cells: Sequence[tuple[str, list[tuple[str, str, str]]]]) -> list[Change]:
    where: dict[tuple[str, str, str], list[str]] = {}
    for name, differences in cells:
        for difference in differences:
            where.setdefault(difference, []).append(name)
    return [
        Change(*difference, () if len(names) == len(cells) else tuple(names))
        for difference, names in where.items()
    ]

"""A comparison as titled tables of text, which a terminal and Markdown show alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.comparison.comparison import Comparison, seeds_in_words
from experiments.comparison.counts import CellCounts
from experiments.comparison.pairs import OVERALL, Change, Finding
from harness.measure.statistics import MIN_PAIRS_FOR_VERDICT

MOST_CELLS = 6
"""Of a metric, where no more are asked for: beyond that only those that differ are listed."""

_ALL_CELLS = "all cells"


class Section(NamedTuple):
    """heads: of the columns, the first left-aligned and the others too where `text` has them.
    rows: of as many texts. notes: lines below."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text: tuple[int, ...] = (0,)


def sections(found: Comparison, *, every_cell: bool = False) -> list[Section]:
    """All that there is to read, in order."""
    made = [_settings(found), _environment(found), _failures(found), _unmatched(found)]
    return [
        *(each for each in made if each is not None),
        _metrics(found, every_cell),
        _ledger(found),
    ]


def change_in_words(change: Change) -> str:
    """A relative change with its interval, where there is one."""
    interval = interval_in_words(change)
    return percent(change.mean) + (f", {interval}" if interval else "")


def interval_in_words(change: Change) -> str:
    """Both ends in percent; nothing where there are none."""
    if change.is_exact:
        return "exact"
    if math.isnan(change.low):
        return ""
    return f"{percent(change.low, '')} to {percent(change.high, '')}"


def percent(value: float, unit: str = " %") -> str:
    """With its sign, to three digits or so."""
    if math.isinf(value):
        return "from 0" if value > 0 else "below 0"
    digits = 1 if abs(value) < 0.0995 else 0
    return f"{100 * value:+,.{digits}f}{unit}"


def where(cell: str) -> str:
    """A cell's name for a reader."""
    return _ALL_CELLS if cell == OVERALL else cell


def _settings(found: Comparison) -> Section:
    rows = tuple(
        (each.key, each.before, each.after, ", ".join(each.cells) or "everywhere")
        for each in (*found.matching.changes, *found.matching.sampling)
    )
    other = "run ids differ, so code, device or data do"
    if rows and not found.matching.changes and found.matching.other_ids:
        return Section("Settings", ("key", "A", "B", "where"), rows, (other,), (0, 1, 2, 3))
    if rows:
        return Section("Settings", ("key", "A", "B", "where"), rows, text=(0, 1, 2, 3))
    same = "the same settings"
    if found.same_addresses:
        same += ", code and device: their run ids are the same"
    elif not found.matching.cells:
        same = "no cell of A is one of B"
    elif found.matching.other_ids:
        same += f"; {other}"
    else:
        same += ", code and device in all that is compared"
    return Section("Settings", (), (), (same,))


def _environment(found: Comparison) -> Section:
    changes, load = found.surroundings
    notes = () if changes else ("the same machine, packages and revision",)
    if load is not None:
        notes += (f"load average up to {load:g} before a run: more than there are cores",)
    heads = ("what", "A", "B") if changes else ()
    return Section("Environment", heads, tuple(changes), notes, text=(0, 1, 2))


def _failures(found: Comparison) -> Section | None:
    rows = tuple(
        (each.cell, str(each.seed), each.status_before, each.status_after, each.error)
        for each in found.outcomes
    )
    heads = ("cell", "seed", "A", "B", "error")
    return Section("Runs that ended otherwise", heads, rows, text=(0, 2, 3, 4)) if rows else None


def _unmatched(found: Comparison) -> Section | None:
    rows = [(name, "A alone") for name in found.matching.only_before]
    rows += [(name, "B alone") for name in found.matching.only_after]
    rows += [
        (f"{each.cell}: {seeds_in_words(each.seeds)}", f"{'A' if each.is_lacking else 'B'} alone")
        for each in found.unpaired
    ]
    rows += [
        (f"{_counted(side.study.missing, 'run')} not stored yet", f"{letter} alone lacks them")
        for letter, side in (("A", found.before), ("B", found.after))
        if side.study.missing
    ]
    return Section("Not compared", ("cell", "in"), tuple(rows), text=(0, 1)) if rows else None


def _metrics(found: Comparison, every_cell: bool) -> Section:
    rows: list[tuple[str, ...]] = []
    left_out = 0
    equal: list[str] = []
    for title, group in _by_metric(found.findings):
        if all(each.verdict == "equal" for each in group) and not every_cell:
            equal.append(title)
            continue
        shown = [each for each in group if every_cell or _is_shown(each, group)]
        left_out += len(group) - len(shown)
        alone = len(shown) == 1
        if not alone:
            noise = f"noise {100 * shown[0].noise:.0f} %" if found.is_noisy else ""
            rows.append((title, "", "", "", "", noise))
        rows += [_metric_row(found, each, title if alone else "") for each in shown]
    notes = _metric_notes(found)
    if equal:
        notes.insert(0, f"Equal in every pair: {', '.join(equal)}.")
    if left_out:
        notes.insert(
            0, f"{_counted(left_out, 'row')} of single cells without a difference: see --all."
        )
    heads = ("metric", "A", "B", "change", "95 % interval", "B is")
    return Section("Metrics", heads if rows else (), tuple(rows), tuple(notes), text=(0, 5))


def _by_metric(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    names = dict.fromkeys(each.metric.name for each in findings)
    for name in names:
        group = [each for each in findings if each.metric.name == name]
        yield group[0].metric.column.title, group


def _is_shown(each: Finding, group: Sequence[Finding]) -> bool:
    if each.cell == OVERALL or len(group) <= MOST_CELLS + 1:
        return True
    return each.verdict in ("better", "worse")


def _metric_row(found: Comparison, each: Finding, title: str) -> tuple[str, ...]:
    verdict: str = each.verdict
    if verdict in ("better", "worse") and abs(each.change.mean) <= found.threshold:
        verdict += " (below the threshold)"
    change = ("", "")
    if verdict != "equal":
        change = (percent(each.change.mean), interval_in_words(each.change))
    values = (each.metric.shown(each.before), each.metric.shown(each.after))
    if each.cell == OVERALL:
        values = ("", "")
    return (title or f"  {where(each.cell)}", *values, *change, verdict)


def _metric_notes(found: Comparison) -> list[str]:
    notes = []
    num_tests = sum(not math.isnan(each.p_value) for each in found.findings)
    if found.findings:
        sizes = sorted({each.change.num_pairs for each in found.findings})
        size = _pairs(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {_pairs(sizes[-1])}"
        tests = f"; {_counted(num_tests, 'test')}, together at 5 % (Holm)" if num_tests else ""
        notes.append(f"{size} of the same seed{tests}.")
    if any(each.verdict == "too few runs to tell" for each in found.findings):
        notes.append(f"A verdict takes {MIN_PAIRS_FOR_VERDICT} pairs: repetitions=6 or more.")
    if any(each.change.is_exact for each in found.findings):
        notes.append("The same at every seed: exact, one observation and not a sample.")
    if found.is_noisy and found.findings:
        notes.append(
            "A and B were timed one after the other: what the machine did otherwise meanwhile is "
            "in every pair, so a change up to the metric's noise is none (docs/compare.md). One "
            "command that sweeps both makes their runs take turns."
        )
    elif not found.is_timed and found.findings:
        notes.append("Simulated: every figure is exact; pairs vary by their workloads alone.")
    return notes


def _ledger(found: Comparison) -> Section:
    rows = []
    for each in found.counts:
        for index, count in enumerate(each.different):
            digits = 1 if count.unit else 0
            numbers = [f"{value:,.{digits}f}" for value in (count.before, count.after)]
            difference = f"{count.difference:+,.{digits}f}"
            name = f"{count.name}, {count.unit}" if count.unit else count.name
            rows.append((each.cell if not index else "", name, *numbers, difference))
    heads = ("cell", "count", "A", "B", "B - A") if rows else ()
    return Section("Ledger counts", heads, tuple(rows), tuple(_ledger_notes(found)), text=(0, 1))


def _ledger_notes(found: Comparison) -> list[str]:
    if not found.has_steps:
        return ["not compared: an export has no steps to count in"]
    num_pairs = sum(each.num_pairs for each in found.counts)
    if not num_pairs:
        return ["no pair of the same seed to count in"]
    num_equal = sum(each.num_equal for each in found.counts)
    if num_equal == num_pairs:
        in_all = "the only pair" if num_pairs == 1 else f"all {num_pairs} pairs"
        return [f"equal in {in_all}, in every slot of every step"]
    notes = [f"equal in {num_equal} of {_pairs(num_pairs)}; slots are means over steps"]
    notes += [_first_difference(each) for each in found.counts if not each.is_equal][:MOST_CELLS]
    if found.is_timed and not found.matching.changes:
        notes.append("timed: what is decided follows the clock where requests arrive by it")
    return notes


def _first_difference(each: CellCounts) -> str:
    same = f"; decisions are the same in {each.num_same_decisions} of {_pairs(each.num_pairs)}"
    return f"{each.cell}: first at {each.first_difference}{same}"


def _pairs(count: int) -> str:
    return _counted(count, "pair")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")

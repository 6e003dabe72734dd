"""Metrics of two studies in pairs of the same seed: differences, intervals, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from experiments.comparison.metrics import NOISE_FLOOR, Metric
from harness.measure.statistics import (
    MIN_PAIRS_FOR_VERDICT,
    Floats,
    Verdict,
    holm,
    paired_p_value,
    t_interval,
    verdict_of,
)

OVERALL = ""
"""The cell's name of what is said of all cells together."""

WITHIN_NOISE: Final = "within the noise of separate sweeps"
"""Significant by its pairs, and no larger than what two timed sweeps of the same may differ by."""

Word = Verdict | Literal["equal", "within the noise of separate sweeps"]


class Pairs(NamedTuple):
    """A metric in a cell, before any verdict.

    before, after: means over the pairs, in the metric's own unit; NaN for all cells together.
    changes: pair by pair, the logarithm of after over before where `is_ratio`; where a value of the
    metric is 0 or below, after less before over the mean of before, infinite if that is 0.
    is_constant: each side has one value at all of its seeds, of which there are several.
    """

    metric: Metric
    cell: str
    before: float
    after: float
    changes: Floats
    is_ratio: bool
    is_constant: bool = False


class Change(NamedTuple):
    """A relative change, -0.1 for a tenth less, with the ends of its 95 % interval; they are NaN
    below five pairs. Of ratios it is their geometric mean. is_exact: simulated, and the
    same at every seed, so that all seeds are one observation without an interval."""

    mean: float
    low: float
    high: float
    num_pairs: int
    is_exact: bool = False


class Finding(NamedTuple):
    """noise: relative change up to which it may be the machine's; 0 where nothing was measured by
    the clock or both took turns. p_value: corrected over the family, NaN where it was not tested.
    verdict: of the second study against the first. before, after: as in Pairs.
    """

    metric: Metric
    cell: str
    before: float
    after: float
    change: Change
    noise: float
    p_value: float
    verdict: Word


def pairs_of(
    cells: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], metrics: Sequence[Metric]
) -> list[Pairs]:
    """Each metric in each cell and, with more than one cell, in all of them together.

    cells: rows of complete runs by name of the cell, of the first and the second study. Rows of the
    same seed are averaged; a seed that either lacks, or has without the metric, is left out.
    Together: at each seed the mean change over the cells that have it, but for those that start
    from 0.
    """
    found: list[Pairs] = []
    for metric in metrics:
        values = {name: _by_seed(metric.name, *sides) for name, sides in cells.items()}
        values = {name: each for name, each in values.items() if each}
        is_ratio = all(_allow_ratio(each) for each in values.values())
        changes = {name: _changes(each, is_ratio) for name, each in values.items()}
        if len(changes) > 1 and (means := _together(changes)):
            found.append(Pairs(metric, OVERALL, math.nan, math.nan, np.array(means), is_ratio))
        for name, each in values.items():
            before, after = (float(np.mean(side)) for side in zip(*each.values(), strict=True))
            own = np.array(list(changes[name].values()))
            is_constant = len(each) > 1 and len(set(each.values())) == 1
            found.append(Pairs(metric, name, before, after, own, is_ratio, is_constant))
    return found


def findings(
    family: Sequence[Pairs], *, is_noisy: bool, is_simulated: bool = False
) -> list[Finding]:
    """A verdict for each of a family, by a paired t test with Holm's correction over all of it.

    Pairs that are all equal need no test, and too few of them (MIN_PAIRS_FOR_VERDICT) get none;
    neither makes the family larger. is_noisy: both studies were timed, one after the other, so
    that whatever the machine did otherwise meanwhile is in every pair, which no test can see. A
    change must then also be larger than `noise_of` its metric to be called one. is_simulated: a
    cell whose every metric is constant has a deterministic workload, and is told without a test.
    """
    noises = {each.metric.name: 0.0 for each in family}
    if is_noisy:
        noises = {name: noise_of([p for p in family if p.metric.name == name]) for name in noises}
    exact = _exact_cells(family) if is_simulated else set()
    to_test = [
        index
        for index, each in enumerate(family)
        if len(each.changes) >= MIN_PAIRS_FOR_VERDICT
        and each.changes.any()
        and each.cell not in exact
    ]
    corrected = holm([_p_value(family[index].changes) for index in to_test])
    p_values = dict(zip(to_test, corrected, strict=True))
    return [
        _exact(each)
        if each.cell in exact
        else _finding(each, noises[each.metric.name], p_values.get(index, math.nan))
        for index, each in enumerate(family)
    ]


def _exact_cells(family: Sequence[Pairs]) -> set[str]:
    """All cells together are exact where each of them is."""
    cells = {each.cell for each in family if each.cell != OVERALL}
    varying = {each.cell for each in family if each.cell != OVERALL and not each.is_constant}
    return cells - varying | (set() if varying else {OVERALL})


def _exact(pairs: Pairs) -> Finding:
    change = Change(_change(pairs).mean, math.nan, math.nan, 1, is_exact=True)
    verdict: Word = "equal"
    if pairs.changes.any():
        is_better = (change.mean > 0) == pairs.metric.higher_is_better
        verdict = "better" if is_better else "worse"
    return Finding(*pairs[:4], change, 0.0, math.nan, verdict)


def noise_of(family: Sequence[Pairs]) -> float:
    """How far two timed studies of the same may be apart in a metric, relatively: as far as one
    pair in twenty is from the mean of the others (Student's t at 95 %, standard deviation within
    cells), as if all that differs between the two were one more pair; at least NOISE_FLOOR.
    """
    samples = [p.changes for p in family if p.cell != OVERALL and len(p.changes) > 1]
    samples = [each for each in samples if np.isfinite(each).all()]
    floor = NOISE_FLOOR[family[0].metric.clock]
    if not samples:
        return floor
    degrees = sum(len(each) - 1 for each in samples)
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in samples)
    fewest = min(len(each) for each in samples)
    deviation = math.sqrt(squares / degrees * (1 + 1 / fewest))
    width = float(special.stdtrit(degrees, 0.975)) * deviation
    return max(floor, math.expm1(width) if family[0].is_ratio else width)


_BySeed = dict[int, tuple[float, float]]
"""Before and after of a metric in a cell, seed by seed."""


def _by_seed(name: str, before: pd.DataFrame, after: pd.DataFrame) -> _BySeed:
    """Of the seeds that both have, in order; several rows of a seed are averaged."""
    sides = []
    for rows in (before, after):
        found: dict[int, list[float]] = {}
        if name in rows:
            for seed, value in zip(rows["seed"], rows[name], strict=True):
                if value is not None and math.isfinite(value):
                    found.setdefault(int(seed), []).append(float(value))
        sides.append({seed: sum(values) / len(values) for seed, values in found.items()})
    left, right = sides
    return {seed: (left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())}


def _allow_ratio(values: _BySeed) -> bool:
    """All are above 0, or there is no change to express."""
    pairs = values.values()
    return all(a > 0 and b > 0 for a, b in pairs) or all(a == b for a, b in pairs)


def _changes(values: _BySeed, is_ratio: bool) -> dict[int, float]:
    """As in Pairs, seed by seed."""
    mean = abs(sum(before for before, _ in values.values())) / len(values)

    def change(before: float, after: float) -> float:
        if before == after:
            return 0.0
        if is_ratio:
            return math.log(after / before)
        return (after - before) / mean if mean else math.copysign(math.inf, after - before)

    return {seed: change(*pair) for seed, pair in values.items()}


def _together(changes: Mapping[str, Mapping[int, float]]) -> list[float]:
    """At each seed the mean over the cells that have it and do not start from 0."""
    finite = [each for each in changes.values() if all(map(math.isfinite, each.values()))]
    seeds = sorted({seed for each in finite for seed in each})
    by_seed = [[each[seed] for each in finite if seed in each] for seed in seeds]
    return [sum(values) / len(values) for values in by_seed]


def _p_value(changes: Floats) -> float:
    """Changes from 0 are infinite, and tested by their signs."""
    return paired_p_value(changes if np.isfinite(changes).all() else np.sign(changes))


def _change(pairs: Pairs) -> Change:
    n = len(pairs.changes)
    if not np.isfinite(pairs.changes).all():
        mean = math.copysign(math.inf, float(np.sign(pairs.changes).sum()))
        return Change(mean, math.nan, math.nan, n)
    mean, half_width, _ = t_interval(pairs.changes)
    ends = (mean, mean - half_width, mean + half_width)
    return Change(*(math.expm1(end) if pairs.is_ratio else end for end in ends), n)


def _finding(pairs: Pairs, noise: float, p_value: float) -> Finding:
    change = _change(pairs)
    verdict: Word = "equal"
    if pairs.changes.any():
        verdict = verdict_of(change.mean, p_value, pairs.metric.higher_is_better)
        if verdict in ("better", "worse") and abs(change.mean) <= noise:
            verdict = WITHIN_NOISE
    return Finding(*pairs[:4], change, noise, p_value, verdict)

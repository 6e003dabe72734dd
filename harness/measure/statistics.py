"""Averages, intervals over repetitions, and verdicts on differences. docs/statistics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]

MIN_REPETITIONS_FOR_INTERVAL = 5
MIN_PAIRS_FOR_VERDICT = 6
SIGNIFICANCE = 0.05

EQUIVALENCE_LIMIT = 0.05
"""Runs that do the same work may differ in time by this share."""

Verdict = Literal["better", "worse", "no difference seen", "too few runs to tell"]


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval; NaN where repetitions are too few."""

    mean: float
    half_width: float
    n: int


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Mean of `values` weighted by `weights`; NaN when the weights add up to nothing."""
    total = float(weights.sum())
    # not np.dot: its threads take longer to wake than this takes, and its sum is less exact
    return float((values * weights).sum()) / total if total > 0 else math.nan


def t_interval(values: Floats) -> Interval:
    """Student's t interval of the mean at 95 %, from five values on; below that a mean alone."""
    finite = values[np.isfinite(values)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(finite.mean())
    if n < MIN_REPETITIONS_FOR_INTERVAL:
        return Interval(mean, math.nan, n)
    half_width = float(special.stdtrit(n - 1, 0.975) * finite.std(ddof=1) / math.sqrt(n))
    return Interval(mean, half_width, n)


class Comparison(NamedTuple):
    """difference: mean of the paired differences with its interval. p_value: two-sided, after
    Holm's correction over the family; NaN where pairs are too few to be tested."""

    difference: Interval
    p_value: float
    verdict: Verdict


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> Floats:
    """`values` less `baseline`, seed by seed; a seed that either lacks, or has as NaN, is left
    out."""
    seeds = sorted(values.keys() & baseline.keys())
    differences = np.array([values[seed] - baseline[seed] for seed in seeds], dtype=np.float64)
    return differences[np.isfinite(differences)]


def paired_p_value(differences: Floats) -> float:
    """Two-sided p value of Student's paired t test. NaN below two pairs; where all differences
    are the same, 1 for zero and 0 for any other."""
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] else 1.0
    n = len(differences)
    t = float(differences.mean() / differences.std(ddof=1)) * math.sqrt(n)
    return float(2 * special.stdtr(n - 1, -abs(t)))


def interval_p_value(interval: Interval, value: float) -> float:
    """Two-sided p value of `value` for the mean of a `t_interval`; as `paired_p_value` where all
    observations are the same. NaN without an interval."""
    if math.isnan(interval.half_width):
        return math.nan
    if interval.half_width == 0:
        return 1.0 if interval.mean == value else 0.0
    standard_error = interval.half_width / float(special.stdtrit(interval.n - 1, 0.975))
    return float(2 * special.stdtr(interval.n - 1, -abs(interval.mean - value) / standard_error))


def equivalence_p_value(log_ratios: Floats, limit: float = EQUIVALENCE_LIMIT) -> float:
    """P value of two one-sided t tests (Schuirmann, J. Pharmacokinet. Biopharm. 1987) that the mean
    lies within log(1 + limit) of 0: small where it is shown to. NaN below two pairs; without any
    spread, 0 within the limit and 1 beyond."""
    n = len(log_ratios)
    if n < 2:
        return math.nan
    mean, bound = float(log_ratios.mean()), math.log1p(limit)
    error = float(log_ratios.std(ddof=1)) / math.sqrt(n)
    if error == 0:  # also where the squares of differences underflow
        return 0.0 if abs(mean) < bound else 1.0
    return float(special.stdtr(n - 1, (abs(mean) - bound) / error))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P values of a family of tests, corrected so that the chance of any false finding among them
    is bounded (Holm, Scand. J. Statist. 1979): the k-th smallest of m, from 0, times m - k, at
    least as large as those before it and at most 1. In the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def compare(family: Sequence[Floats], higher_is_better: bool) -> tuple[Comparison, ...]:
    """A verdict for each of a family of paired differences from a baseline.

    A family is all that is claimed together: the strategies of one table against its baseline in
    one metric, say. Members of fewer than MIN_PAIRS_FOR_VERDICT pairs are not tested, and make the
    family no larger.
    """
    tested = [index for index, each in enumerate(family) if len(each) >= MIN_PAIRS_FOR_VERDICT]
    corrected = holm([paired_p_value(family[index]) for index in tested])
    p_values = dict(zip(tested, corrected, strict=True))
    return tuple(
        _compared(t_interval(each), p_values.get(index, math.nan), higher_is_better)
        for index, each in enumerate(family)
    )


def _compared(difference: Interval, p_value: float, higher_is_better: bool) -> Comparison:
    return Comparison(difference, p_value, verdict_of(difference.mean, p_value, higher_is_better))


def verdict_of(difference: float, p_value: float, higher_is_better: bool) -> Verdict:
    """What a difference comes to. p_value: corrected, NaN where pairs were too few for a test."""
    if math.isnan(p_value):
        return "too few runs to tell"
    if p_value >= SIGNIFICANCE:
        return "no difference seen"
    return "better" if (difference > 0) == higher_is_better else "worse"

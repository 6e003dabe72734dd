"""Time-weighted averages and intervals over repetitions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

MIN_REPETITIONS_FOR_INTERVAL = 5


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval; NaN where repetitions are too few."""

    mean: float
    half_width: float
    n: int


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Mean of `values` weighted by `weights`; NaN when the weights add up to nothing."""
    total = float(weights.sum())
    return float(np.dot(values, weights)) / total if total > 0 else math.nan


def t_interval(values: Floats) -> Interval:
    """Student's t interval of the mean at 95 %, from five values on; below that a mean alone."""
    finite = values[np.isfinite(values)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(finite.mean())
    if n < MIN_REPETITIONS_FOR_INTERVAL:
        return Interval(mean, math.nan, n)
    half_width = float(stats.t.ppf(0.975, n - 1) * finite.std(ddof=1) / math.sqrt(n))
    return Interval(mean, half_width, n)

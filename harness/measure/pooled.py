"""Mean and percentiles of more values than memory holds."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from harness.measure.statistics import Floats

EXACT_UP_TO = 4_000_000
_DROPPED_BITS = 42
"""Of a double's 52 bits of mantissa: bins are 2**-10 of their value wide, and a bin's values are
told apart no further."""


class Pooled:
    """Values that come a few at a time.

    Percentiles are exact (linear between order statistics) up to EXACT_UP_TO values; of more
    they are within 0.1 % of that. Values must not be negative.
    """

    def __init__(self) -> None:
        self._kept: list[Floats] = []
        self._bins: dict[int, int] = {}
        self._count = 0
        self._total = 0.0

    def add(self, values: Floats) -> None:
        """Take these, too."""
        self._kept.append(values)
        self._count += len(values)
        self._total += float(values.sum())
        if self._count > EXACT_UP_TO:
            self._bin_kept()

    @property
    def mean(self) -> float:
        """NaN where there are none."""
        return self._total / self._count if self._count else math.nan

    def percentiles(self, percents: tuple[int, ...]) -> list[float]:
        """NaN where there are none."""
        if not self._count:
            return [math.nan for _ in percents]
        if not self._bins:
            return [float(v) for v in np.percentile(np.concatenate(self._kept), percents)]
        keys = np.array(sorted(self._bins), dtype=np.uint64)
        counts = np.array([self._bins[int(key)] for key in keys])
        ranks = np.array(percents) / 100 * (self._count - 1)
        places = np.searchsorted(np.cumsum(counts), ranks, side="right")
        return [float(v) for v in _middles(keys[places])]

    def _bin_kept(self) -> None:
        values = np.concatenate(self._kept).astype(np.float64)
        keys, counts = np.unique(values.view(np.uint64) >> _DROPPED_BITS, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._bins[key] = self._bins.get(key, 0) + count
        self._kept = []


def _middles(keys: npt.NDArray[np.uint64]) -> Floats:
    """The middle of each bin; doubles that are not negative are ordered as their bits are."""
    middles = (keys << np.uint64(_DROPPED_BITS)) + np.uint64(1 << (_DROPPED_BITS - 1))
    values: Floats = middles.view(np.float64)
    return values

"""Whether a system keeps up with what arrives, and what rate it sustains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from harness.measure.statistics import Floats

GROWTH_SHARE = 0.05
"""A queue grows where service falls behind by more than this share of what arrives."""


class Backlog(NamedTuple):
    """growth: rise of the mean number of requests in the system from the middle third of the
    arrival window to its last third, as a share of the arrivals of a third; NaN where all arrive
    at once. For an overloaded system it tends to the share of arrivals that it does not serve.
    grows: whether that is more than noise.
    """

    growth: float
    grows: bool


def backlog(arrival_s: Floats, finish_s: Floats) -> Backlog:
    """The backlog of requests that arrived and finished at these times, in any order.

    It grows if the rise is above GROWTH_SHARE of the arrivals of a third, and above the square
    root of their number, the standard deviation of what a Poisson process brings in that time.
    The first third is left out: the system fills in it. A window shorter than a few times the
    life of a request is filled with nothing else, and then shows growth at any rate.
    """
    if not len(arrival_s):
        return Backlog(math.nan, False)
    first, last = float(arrival_s.min()), float(arrival_s.max())
    if last <= first:
        return Backlog(math.nan, False)
    third_s = (last - first) / 3
    middle = _mean_in_system(arrival_s, finish_s, first + third_s, first + 2 * third_s)
    final = _mean_in_system(arrival_s, finish_s, first + 2 * third_s, last)
    arrivals = len(arrival_s) / 3
    rise = final - middle
    return Backlog(rise / arrivals, rise > max(GROWTH_SHARE * arrivals, math.sqrt(arrivals)))


def _mean_in_system(arrival_s: Floats, finish_s: Floats, begin_s: float, end_s: float) -> float:
    """Time average of the requests that are in the system between two times."""
    present_s = finish_s.clip(begin_s, end_s) - arrival_s.clip(begin_s, end_s)
    return float(present_s.sum()) / (end_s - begin_s)


def is_sustained(metrics: Mapping[str, Any], normalised_latency_ms: float) -> bool:
    """Whether a repetition, by its metrics, sustained the rate at which requests arrived: their
    mean normalised latency is within the bound, and the queue does not grow."""
    within = metrics["normalised_latency_ms"] <= normalised_latency_ms
    return bool(within and not metrics["queue_grows"])


def majority_sustains(rows: Iterable[Mapping[str, Any]], normalised_latency_ms: float) -> bool:
    """Whether more than half of the repetitions sustained the rate, each by its own metrics."""
    votes = [is_sustained(row, normalised_latency_ms) for row in rows]
    return 2 * sum(votes) > len(votes)

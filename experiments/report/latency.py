"""Latencies of single requests as percentile curves, read off the stored requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.report.cells import Cell, Group, labels_of, representatives
from experiments.stored import StoredStudy
from harness.measure.statistics import Floats

PERCENTILES = tuple(range(101))
TABLED = (50, 90, 95, 99)

METRICS = {
    "ttft": ("TTFT", "ms", "time to first token, from the scheduled arrival"),
    "tpot": ("TPOT", "ms/token", "time per output token, of requests with more than one"),
    "itl": ("ITL", "ms", "gaps between successive tokens, pooled over all tokens"),
    "normalised": ("normalised latency", "ms/token", "E2E over output tokens"),
    "e2e": ("E2E", "ms", "from the scheduled arrival to the last token"),
}
"""Name, unit and meaning of each latency (docs/metrics.md)."""

LOG_FROM = 20.0
"""Curves that span more than this factor are drawn over a logarithm."""


class Curve(NamedTuple):
    """values: at PERCENTILES, linearly interpolated. n: what they are of."""

    label: str
    values: tuple[float, ...]
    n: int


class LatencyChart(NamedTuple):
    """One latency of all cells shown. low, high: of the axis. ticks: values with a line."""

    key: str
    name: str
    unit: str
    meaning: str
    curves: tuple[Curve, ...]
    is_log: bool
    low: float
    high: float
    ticks: tuple[float, ...]

    def height(self, value: float) -> float:
        """Where `value` lies on the axis, between 0 and 1 from the bottom."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        value = max(value, self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


class LatencyView(NamedTuple):
    """A group's charts. note: which rows they are of."""

    title: str
    charts: tuple[LatencyChart, ...]
    note: str


def latency_view(group: Group, study: StoredStudy) -> LatencyView | None:
    """The curves of the group's representatives; None where times mean nothing, or
    the study is an export, which has no requests."""
    if not group.has_times or not group.complete or study.is_exported:
        return None
    cells, note = representatives(group)
    found = {
        label: latencies(requests_of(cell, study))
        for label, cell in zip(labels_of(cells), cells, strict=True)
    }
    charts = [_chart(key, found) for key in METRICS]
    shown = tuple(chart for chart in charts if chart is not None)
    return LatencyView(group.table.title, shown, note) if shown else None


def requests_of(cell: Cell, study: StoredStudy) -> pd.DataFrame:
    """The finished requests of all repetitions of a cell."""
    frames = [study.run(run_id).frame("requests") for run_id in dict.fromkeys(cell.rows["run_id"])]
    together = pd.concat(frames, ignore_index=True)
    return together[together["status"] == "finished"]


def latencies(requests: pd.DataFrame) -> dict[str, Floats]:
    """Each latency of METRICS, a value a request; of `itl` a value a gap. Those without any value
    are left out."""
    arrival = requests["arrival_s"].to_numpy(dtype=float)
    tokens = requests["num_output_tokens"].to_numpy(dtype=float)
    ttft = 1e3 * (requests["first_token_s"].to_numpy(dtype=float) - arrival)
    e2e = 1e3 * (requests["finish_s"].to_numpy(dtype=float) - arrival)
    several = tokens > 1
    gaps = [np.asarray(each, dtype=float) for each in requests["itl_ms"]]
    found = {
        "ttft": ttft,
        "tpot": (e2e - ttft)[several] / (tokens[several] - 1),
        "itl": np.concatenate(gaps) if gaps else np.empty(0),
        "normalised": e2e / tokens,
        "e2e": e2e,
    }
    finite = {key: values[np.isfinite(values)] for key, values in found.items()}
    return {key: values for key, values in finite.items() if len(values)}


def _chart(key: str, found: Mapping[str, Mapping[str, Floats]]) -> LatencyChart | None:
    curves = tuple(
        Curve(label, tuple(map(float, np.percentile(values[key], PERCENTILES))), len(values[key]))
        for label, values in found.items()
        if key in values
    )
    if not curves:
        return None
    name, unit, meaning = METRICS[key]
    high = max(curve.values[-1] for curve in curves)
    positive = [value for curve in curves for value in curve.values if value > 0]
    lowest = min((curve.values[1] for curve in curves), default=0.0)
    is_log = lowest > 0 and high / lowest > LOG_FROM
    if is_log:
        low, top = min([*positive, lowest]), high
        low = max(low, lowest / 2)
        ticks = _log_ticks(low, top)
        return LatencyChart(key, name, unit, meaning, curves, True, low, top * 1.02, ticks)
    ticks = _linear_ticks(high)
    return LatencyChart(
        key, name, unit, meaning, curves, False, 0.0, max(high, ticks[-1]) or 1.0, ticks
    )


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten within the range; powers alone where those are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[int] = (1, 2, 5) if len(exponents) <= 3 else (1,)
    found = (step * 10.0**exponent for exponent in exponents for step in steps)
    return tuple(tick for tick in found if low <= tick <= high)


def _linear_ticks(high: float) -> tuple[float, ...]:
    """Round values from 0 on, four to six of them, the last at or above `high`."""
    if high <= 0:
        return (0.0, 1.0)
    raw = high / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    return tuple(step * index for index in range(math.ceil(high / step) + 1))

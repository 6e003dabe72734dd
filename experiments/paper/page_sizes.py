"""Latency over page size: the PagedAttention paper's Figs. 18 (b) and 19."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from experiments.line_panels import Look, Panel, draw_lines, power_ticks
from experiments.paper.rates import CLAIM_COLOUR
from experiments.plotting import means

LATENCY = Panel("normalised_latency_ms", "normalised latency,\nms/token")

PRESSED_RATES = {"sharegpt": 3.2, "alpaca_like": 90.0}
"""Requests/s at which memory is scarce: what pages of 16 just sustain."""


def latencies(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Means of normalised latency by workload, `by` and page size, with the share of the time
    that memory was scarce."""
    keys = ["workload", by, "page_size"]
    return means(rows, keys, [LATENCY.metric, "saturated_share", "preemptions"])


def draw_panel(
    axes: Axes,
    points: pd.DataFrame,
    by: str,
    looks: Mapping[object, Look],
    workload: str,
    claimed: Sequence[float],
) -> None:
    """Lines of one workload's latency over the page size, one for each value of `by`. claimed:
    first and last page size of which the paper says what it says; shaded."""
    of_workload = points[points["workload"] == workload]
    draw_lines(axes, of_workload, "page_size", by, LATENCY, looks)
    power_ticks(axes, sorted(of_workload["page_size"].unique()))
    axes.axvspan(claimed[0] / 1.25, claimed[1] * 1.25, color=CLAIM_COLOUR, linewidth=0, zorder=0)
    axes.set_xlabel("page size, tokens")
    axes.set_title(workload)


def largest_good_page(points: pd.DataFrame, margin: float) -> float:
    """The largest page size whose latency, and that of all smaller ones down to the best, is at
    most 1 + margin times the best."""
    line = points.sort_values("page_size")
    best = line[LATENCY.metric].min()
    start = int(line[LATENCY.metric].to_numpy().argmin())
    good = (line[LATENCY.metric] <= (1 + margin) * best).to_numpy()
    last = start
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return float(line["page_size"].iloc[last])


def in_use(workloads: Sequence[str]) -> list[str]:
    """Workloads in the figures' order, each once."""
    return [name for name in PRESSED_RATES if name in set(workloads)]

"""Capacity against a contiguous reference beside the paper's, and latency over a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.figure_style import note_size
from experiments.line_panels import memory_note, unbound_mark
from experiments.plotting import (
    EXPECTED_COLOURS,
    MARKERS,
    STRATEGY_COLOURS,
    line_width,
    means,
)
from harness.measure.metrics import MEMORY_BOUND_SHARE

EVICTION_MARKERS = {"lru": "s", "lfu": "P", "fifo": "X"}
LINE_METRICS = (
    "normalised_latency_ms",
    "output_tokens_per_s",
    "batched_requests",
    "prefix_hit_rate",
    "saturated_share",
)
OPEN_ENDED = ("normalised_latency_ms", "normalised_latency_ms_ci")
"""Figures that have no limit where requests come faster than they are served."""

CAPACITY_METRICS = (
    "tokens_per_step",
    "batched_requests",
    "utilisation",
    "prefix_hit_rate",
    "sharing_saved",
    "saturated_share",
    "preemptions",
)


def capacity_points(rows: pd.DataFrame, keys: Sequence[str], expected: str) -> pd.DataFrame:
    """Means by strategy and `keys`, with `ratio`: output tokens/step over the contiguous
    reference's.

    The ratio is taken seed by seed against the contiguous strategy that is told `expected`, so
    that both have had the same requests; NaN where there was none.
    """
    rows = rows.assign(tokens_per_step=rows["output_tokens"] / rows["num_steps"])
    reference = rows[(rows["allocator"] == "contiguous") & (rows["expected"] == expected)]
    index = [*keys, "seed"]
    base = reference.groupby(index)["tokens_per_step"].mean().rename("base")
    joined = rows.join(base, on=index)
    joined["ratio"] = joined["tokens_per_step"] / joined["base"]
    return means(joined, [*keys, "strategy", "allocator", "expected"], ["ratio", *CAPACITY_METRICS])


def ratio_bars(axes: Axes, points: pd.DataFrame, paper: float | None, paper_at: str) -> None:
    """A bar a strategy; the paper's `paper_at` strategy is marked across its bar, and a strategy
    whose memory was not scarce has `line_panels.UNBOUND` at its name."""
    for x, (_, point) in enumerate(points.iterrows()):
        interval = float(np.nan_to_num(point["ratio_ci"]))
        axes.bar(
            x, point["ratio"], 0.8, color=colour_of(point), yerr=interval or None,
            error_kw={"linewidth": 0.8, "capsize": 1.5}, zorder=2,
        )  # fmt: skip
        axes.annotate(
            f"{point['ratio']:.2f}", (x, point["ratio"] + interval), xytext=(0, 1.5),
            textcoords="offset points", ha="center", va="bottom", fontsize=note_size(),
        )  # fmt: skip
        if paper is not None and point["allocator"] == paper_at:
            axes.bar(x, paper, 0.8, fill=False, edgecolor="black", linestyle=":", zorder=3)
            axes.annotate(
                f"paper {paper:.2f}", (x, paper), xytext=(0, -2), textcoords="offset points",
                ha="center", va="top", fontsize=note_size(), color="white", zorder=4,
            )  # fmt: skip
    labels = [
        bar_label(name) + unbound_mark(saturated)
        for name, saturated in zip(points["strategy"], points["saturated_share"], strict=True)
    ]
    axes.set_xticks(range(len(points)), labels)
    axes.tick_params(axis="x", length=0, labelsize=note_size())


def bar_label(strategy: str) -> str:
    """A strategy's label, a word or two a line."""
    return strategy.replace("contiguous buddy", "buddy").replace("_", "\n").replace(" ", "\n")


def rate_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Means by strategy and rate.

    past_knee: from a strategy's first rate on at which memory was scarce for half of the time.
    There the backlog grows for as long as requests come, so its latency says how long the run
    was, and is NaN.
    """
    points = means(rows, ["strategy", "allocator", "expected", "rate"], LINE_METRICS)
    is_saturated = points["saturated_share"] >= MEMORY_BOUND_SHARE
    knee = points["rate"].where(is_saturated).groupby(points["strategy"]).transform("min")
    past_knee = points["rate"] >= knee
    latency = points[list(OPEN_ENDED)].mask(past_knee)
    return points.assign(past_knee=past_knee, **latency)


def rate_lines(axes: Axes, points: pd.DataFrame, metric: str, scale: float = 1.0) -> None:
    """`metric` times `scale` over the rate, a line a strategy, which ends in a ring where the
    rest of it lies past the knee. points: as from `rate_points`."""
    for _, line in points.groupby("strategy", sort=False):
        line = line.sort_values("rate")
        look = line_look(line.iloc[0])
        shown = line[line[metric].notna()]
        axes.errorbar(
            shown["rate"], scale * shown[metric], yerr=scale * shown[f"{metric}_ci"].fillna(0),
            capsize=2, **look,
        )  # fmt: skip
        if 0 < len(shown) < len(line):
            last = shown.iloc[-1]
            axes.plot(
                last["rate"], scale * last[metric], marker="o", markersize=11, fillstyle="none",
                color=look["color"],
            )  # fmt: skip


def knee_notes(points: pd.DataFrame) -> list[str]:
    """Where lines of latency end and why, and which have no point at all, for below a figure."""
    past = points[points["past_knee"]]
    if past.empty:
        return []
    note = (
        "○ last rate at which the queue waits for memory less than half of the time: "
        "beyond it latency grows with the run's length and is not shown"
    )
    below = set(points[~points["past_knee"]]["strategy"])
    if nowhere := [name for name in past["strategy"].unique() if name not in below]:
        note += f"; nor is it at any rate for {', '.join(nowhere)}"
    return [note]


def drawn_memory_note(points: pd.DataFrame) -> str:
    """`line_panels.memory_note` of means, for a title."""
    memory_bound = points["saturated_share"] >= MEMORY_BOUND_SHARE
    return f"simulated; {memory_note(points.assign(memory_bound=memory_bound))}"


def colour_of(point: pd.Series) -> str:
    """A strategy's colour; contiguous ones have that of what they are told."""
    if point["allocator"] == "contiguous":
        return EXPECTED_COLOURS.get(point["expected"], "#999999")
    return STRATEGY_COLOURS.get(point["allocator"], "#999999")


def line_look(point: pd.Series) -> dict[str, Any]:
    """Colour, marker and line of a strategy; policies of eviction differ by marker."""
    eviction = str(point["strategy"]).rpartition(" ")[2]
    marker = EVICTION_MARKERS.get(eviction, MARKERS.get(point["allocator"], "D"))
    return {
        "color": colour_of(point),
        "marker": marker,
        "linestyle": "--" if point["allocator"] == "contiguous" else "-",
        "linewidth": line_width(point["allocator"], 0.75),
    }


def line_handles(rows: pd.DataFrame) -> list[Line2D]:
    """Legend entries of the strategies of `rows`, in order of appearance."""
    unique = rows.drop_duplicates("strategy")
    return [Line2D([], [], label=row["strategy"], **line_look(row)) for _, row in unique.iterrows()]


def paper_handle() -> Patch:
    """Legend entry of the paper's ratio."""
    return Patch(fill=False, edgecolor="black", linestyle=":", label="PagedAttention paper")


def with_paper(points: pd.DataFrame, ratios: Mapping[Any, float], key: str) -> pd.DataFrame:
    """`points` with a row for each published ratio: source says whose a row is."""
    theirs = pd.DataFrame([{key: at, "ratio": value} for at, value in ratios.items()])
    return pd.concat(
        [points.assign(source="here"), theirs.assign(source="paper")], ignore_index=True
    )

"""Reservation crossed with placement: which of the two paging's gain comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from rich.text import Text

from experiments.figure_layout import PanelSize, arrange, fill_line, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import Panel, from_zero
from experiments.paired import (
    PLACEMENT_COLOURS,
    PLACEMENT_LABELS,
    PLACEMENTS,
    doubts,
    in_words,
    paired_ratio,
    slo_in_words,
    with_placement,
)
from experiments.plotting import jobs_of, means, save
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

RESERVATIONS = {
    "max": "the bound\n(max)",
    "oracle": "the true length\n(oracle)",
    "none": "nothing\n(optimistic)",
}

CAPACITY_PANELS = (
    Panel("output_tokens_per_s", "at capacity:\noutput tokens/s"),
    Panel("batched_requests", "at capacity:\nbatched requests"),
    Panel("recomputed_per_token", "at capacity: recomputed\ntokens per output token"),
)
GOODPUT_PANEL = Panel("goodput_requests_per_s", "at a fixed rate:\ngoodput, requests/s")


class Step(NamedTuple):
    """One change of strategy, (placement, expected) to (placement, expected)."""

    label: str
    before: tuple[str, str]
    after: tuple[str, str]


STEPS = (
    Step("know the length\n(first fit)", ("first_fit", "max"), ("first_fit", "oracle")),
    Step("place anywhere\n(oracle)", ("first_fit", "oracle"), ("paged", "oracle")),
    Step("reserve nothing\n(paged)", ("paged", "oracle"), ("paged", "none")),
    Step("reserve nothing\n(first fit)", ("first_fit", "oracle"), ("first_fit", "none")),
    Step("reserve nothing\n(buddy)", ("buddy", "oracle"), ("buddy", "none")),
)
"""The first three lead from reservations of the bound to paging; the others leave placement as
it is."""


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`reservation_placement`: each combination, and what each change alone is worth."""
    rows = _derived(rows)
    if rows.empty:
        return []
    points = means(
        rows, ["part", "placement", "expected"],
        [panel.metric for panel in (*CAPACITY_PANELS, GOODPUT_PANEL)],
    )  # fmt: skip
    factors = _factors(rows)
    with style.context():
        panels = [("capacity", panel) for panel in CAPACITY_PANELS] + [("goodput", GOODPUT_PANEL)]
        figure, grid = subplots(style, 1, len(panels) + 1, PanelSize(3.5, 2.6), most=3)
        for axes, (part, panel) in zip(grid[0], panels, strict=False):
            _bars(axes, points[points["part"] == part], panel)
        _factor_bars(fill_line(grid[0][-1]), factors)
        from_zero([axes for axes in figure.axes if axes.axison])
        slo = slo_in_words(jobs_of(rows, jobs))
        title = f"What is reserved (groups) and where it lies (colours); simulated; goodput: {slo}"
        shown = [name for name in PLACEMENTS if name in set(points["placement"])]
        handles = [Patch(color=PLACEMENT_COLOURS[n], label=PLACEMENT_LABELS[n]) for n in shown]
        arrange(figure, style, title=title, handles=handles)
        table = pd.concat([points, factors.assign(part="factors")])
        return save(figure, "reservation_placement", folder, table, jobs_of(rows, jobs))


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Text | None:
    """The findings, a line each; None where these rows hold none."""
    lines = findings(rows, jobs)
    return Text("\n".join(lines)) if lines else None


def findings(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """What each change is worth, in tokens/s at capacity."""
    rows = _derived(rows)
    factors = _factors(rows)
    if factors.empty:
        return []
    intervals = [
        Interval(factor["factor"], factor["factor_ci"], int(factor["repetitions"]))
        for _, factor in factors.iterrows()
    ]
    words = [
        f"{label.replace(chr(10), ' ')} x {in_words(interval)}{doubt}"
        for label, interval, doubt in zip(
            factors["label"], intervals, doubts(intervals), strict=True
        )
    ]
    lines = ["capacity, each change alone: " + ", ".join(words)]
    capacity = rows[rows["part"] == "capacity"]
    optimistic, told = (
        _of(capacity, "buddy", "none"),
        _of(capacity, "first_fit", "oracle"),
    )
    if len(optimistic) and len(told):
        ratio = paired_ratio(optimistic, told, "output_tokens_per_s")
        (doubt,) = doubts([ratio])
        lines.append(
            "a buddy allocator whose sequences grow into their round-up, told nothing, decodes "
            f"x {in_words(ratio)} of what first fit told the true length does{doubt}"
        )
    return lines


def _derived(rows: pd.DataFrame) -> pd.DataFrame:
    rows = with_placement(rows[rows["status"] == "complete"])
    if rows.empty:
        return rows
    return rows.assign(recomputed_per_token=rows["recomputed_tokens"] / rows["output_tokens"])


def _of(rows: pd.DataFrame, placement: str, expected: str) -> pd.DataFrame:
    return rows[(rows["placement"] == placement) & (rows["expected"] == expected)]


def _factors(rows: pd.DataFrame) -> pd.DataFrame:
    """Output tokens/s at capacity after each step over before it, seed by seed."""
    if rows.empty:
        return pd.DataFrame()
    capacity = rows[rows["part"] == "capacity"]
    lines = []
    for step in STEPS:
        before, after = _of(capacity, *step.before), _of(capacity, *step.after)
        if len(before) and len(after):
            ratio = paired_ratio(after, before, "output_tokens_per_s")
            lines.append(
                {"label": step.label, "placement": step.after[0], "factor": ratio.mean,
                 "factor_ci": ratio.half_width, "repetitions": ratio.n}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _bars(axes: Axes, points: pd.DataFrame, panel: Panel) -> None:
    axes.set_ylabel(panel.label)
    reservations = [name for name in RESERVATIONS if name in set(points["expected"])]
    placements = [name for name in PLACEMENTS if name in set(points["placement"])]
    if not reservations:
        axes.set_axis_off()
        return
    width = 0.84 / len(placements)
    for index, placement in enumerate(placements):
        own = points[points["placement"] == placement].set_index("expected").reindex(reservations)
        x = np.arange(len(reservations)) + (index - (len(placements) - 1) / 2) * width
        axes.bar(
            x, panel.scale * own[panel.metric], width, color=PLACEMENT_COLOURS[placement],
            yerr=panel.scale * own[f"{panel.metric}_ci"].fillna(0),
            error_kw={"linewidth": 0.8, "capsize": 1.5}, zorder=2,
        )  # fmt: skip
    axes.set_xticks(range(len(reservations)), [RESERVATIONS[name] for name in reservations])
    axes.tick_params(axis="x", length=0, labelsize=note_size())


def _factor_bars(axes: Axes, factors: pd.DataFrame) -> None:
    if factors.empty:
        axes.set_axis_off()
        return
    x = np.arange(len(factors))
    colours = [PLACEMENT_COLOURS[name] for name in factors["placement"]]
    axes.bar(
        x, factors["factor"], 0.7, color=colours, yerr=factors["factor_ci"].fillna(0),
        error_kw={"linewidth": 0.8, "capsize": 1.5}, zorder=2,
    )  # fmt: skip
    for at, value, above in zip(x, factors["factor"], factors["factor_ci"].fillna(0), strict=True):
        axes.annotate(
            f"x {value:.2f}", (at, value + above), xytext=(0, 1.5), textcoords="offset points",
            ha="center", va="bottom", fontsize=note_size(),
        )  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(x, factors["label"])
    axes.tick_params(axis="x", length=0, labelsize=note_size())
    axes.set_ylabel("output tokens/s at capacity,\nafter a change / before it")

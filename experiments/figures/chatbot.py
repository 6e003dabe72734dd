"""Chats: capacity, hits of the prefix cache and latency over a rate (PagedAttention, Fig. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.capacity_figure import (
    capacity_points,
    colour_of,
    drawn_memory_note,
    knee_notes,
    line_handles,
    paper_handle,
    rate_lines,
    rate_points,
    ratio_bars,
    with_paper,
)
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import published, unbound_notes
from experiments.plotting import jobs_of, save
from harness.runs.jobs import Job

PANELS = (
    ("normalised_latency_ms", 1.0, "normalised latency, ms/token\n(a step takes 20 ms)"),
    ("prefix_hit_rate", 100.0, "prompt tokens found cached, %"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`chatbot_capacity`, and `chatbot_rates` where rates were run."""
    rows = rows[(rows["status"] == "complete") & (rows["executor"] == "simulated")]
    paths = []
    with style.context():
        capacity = rows[rows["part"] == "capacity"]
        if len(capacity):
            paths += _draw_capacity(capacity, jobs, folder, style)
        rates = rows[rows["part"] == "rates"]
        if len(rates):
            paths += _draw_rates(rates, jobs, folder, style)
    return paths


def _draw_capacity(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    theirs = published("pagedattention")["fig17_throughput_ratio"]
    points = capacity_points(rows, ["workload"], "oracle")
    figure, grid = subplots(style, 1, 2, PanelSize(4.8, 3.0), narrowest=2.6)
    left, right = grid[0]
    ratio_bars(left, points, theirs["oracle"], "paged")
    left.set_ylabel("output tokens/step at capacity,\ncontiguous buddy oracle = 1")
    hits = points[points["prefix_hit_rate"] > 0]
    for x, (_, point) in enumerate(hits.iterrows()):
        height = 100 * point["prefix_hit_rate"]
        right.bar(x, height, 0.6, color=colour_of(point), zorder=2)
        right.annotate(
            f"{height:.1f}",
            (x, height),
            ha="center",
            va="bottom",
            fontsize=note_size(),
        )
    right.set_xticks(range(len(hits)), list(hits["strategy"]))
    right.set_ylabel("prompt tokens found cached, %")
    notes = unbound_notes(points["saturated_share"])
    arrange(figure, style, handles=[paper_handle()], notes=notes)
    plotted = with_paper(points, theirs, "expected")
    return save(figure, "chatbot_capacity", folder, plotted, jobs_of(rows, jobs))


def _draw_rates(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    figure, grid = subplots(style, 1, len(PANELS), PanelSize(4.2, 2.8))
    points = rate_points(rows)
    for axes, (metric, scale, label) in zip(grid[0], PANELS, strict=True):
        rate_lines(axes, points, metric, scale)
        axes.set_ylabel(label)
        axes.set_xlabel("new chats/s of virtual time")
        axes.set_ylim(bottom=0)
    title, notes = drawn_memory_note(points), knee_notes(points)
    arrange(figure, style, title=title, handles=line_handles(rows), notes=notes)
    return save(figure, "chatbot_rates", folder, points, jobs_of(rows, jobs))

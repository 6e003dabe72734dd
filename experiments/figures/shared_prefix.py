"""What keeping a shared prefix once is worth (PagedAttention, Fig. 16)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.capacity_figure import (
    capacity_points,
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
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.line_panels import published, unbound_notes
from experiments.plotting import jobs_of, save
from harness.runs.jobs import Job


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`shared_prefix_capacity`, and `shared_prefix_latency` where rates were run."""
    rows = rows[(rows["status"] == "complete") & (rows["executor"] == "simulated")]
    paths = []
    with style.context():
        capacity = rows[rows["part"] == "capacity"]
        if len(capacity):
            paths += _draw_capacity(capacity, jobs, folder, style)
        rates = rows[rows["part"] == "rates"]
        if len(rates):
            paths += _draw_latency(rates, jobs, folder, style)
    return paths


def _draw_capacity(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    theirs = published("pagedattention")["fig16_throughput_ratio"]
    points = capacity_points(rows, ["workload", "shared_len"], "oracle")
    prefixes = sorted(points["shared_len"].unique())
    figure, grid = subplots(
        style, 1, len(prefixes), PanelSize(3.2, 2.8), sharey=True, narrowest=2.6
    )
    for axes, prefix in zip(grid[0], prefixes, strict=True):
        bars = points[points["shared_len"] == prefix]
        ratio_bars(axes, bars, theirs.get(prefix), "paged_cow")
        axes.set_title(f"prefix of {prefix} tokens")
        axes.set_ylabel("output tokens/step at capacity,\ncontiguous buddy oracle = 1")
    notes = unbound_notes(points["saturated_share"])
    arrange(figure, style, handles=[paper_handle()], notes=notes)
    plotted = with_paper(points, theirs, "shared_len")
    return save(figure, "shared_prefix_capacity", folder, plotted, jobs_of(rows, jobs))


def _draw_latency(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    prefixes = sorted(rows["shared_len"].unique())
    figure, grid = subplots(style, 1, len(prefixes), PanelSize(3.5, 2.7), sharey=True)
    frames = []
    for axes, prefix in zip(grid[0], prefixes, strict=True):
        points = rate_points(rows[rows["shared_len"] == prefix])
        rate_lines(axes, points, "normalised_latency_ms")
        frames.append(points.assign(shared_len=prefix))
        axes.set_title(f"prefix of {prefix} tokens")
        axes.set_xlabel("requests/s of virtual time")
        axes.set_ylabel("normalised latency, ms/token\n(a step takes 20 ms)")
    grid[0][0].set_ylim(bottom=0)
    plotted = pd.concat(frames, ignore_index=True)
    drawn = plotted[~plotted["past_knee"]]
    title = drawn_memory_note(drawn) if len(drawn) else ""
    arrange(figure, style, title=title, handles=line_handles(rows), notes=knee_notes(plotted))
    return save(figure, "shared_prefix_latency", folder, plotted, jobs_of(rows, jobs))

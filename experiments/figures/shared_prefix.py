"""What keeping a shared prefix once is worth (PagedAttention, Fig. 16)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from experiments.capacity_figure import (
    capacity_points,
    drawn_memory_note,
    explain_knee,
    line_handles,
    paper_handle,
    rate_lines,
    rate_points,
    ratio_bars,
    with_paper,
)
from experiments.line_panels import explain_unbound, published
from experiments.plotting import jobs_of, save, style
from harness.runs.jobs import Job


def draw(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """`shared_prefix_capacity`, and `shared_prefix_latency` where rates were run."""
    rows = rows[(rows["status"] == "complete") & (rows["executor"] == "simulated")]
    paths = []
    with style():
        capacity = rows[rows["part"] == "capacity"]
        if len(capacity):
            paths += _draw_capacity(capacity, jobs, folder)
        rates = rows[rows["part"] == "rates"]
        if len(rates):
            paths += _draw_latency(rates, jobs, folder)
    return paths


def _draw_capacity(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    theirs = published("pagedattention")["fig16_throughput_ratio"]
    points = capacity_points(rows, ["workload", "shared_len"], "oracle")
    prefixes = sorted(points["shared_len"].unique())
    figure, grid = plt.subplots(
        1, len(prefixes), squeeze=False, sharey=True, figsize=(0.8 + 2.9 * len(prefixes), 3.0)
    )
    for axes, prefix in zip(grid[0], prefixes, strict=True):
        bars = points[points["shared_len"] == prefix]
        ratio_bars(axes, bars, theirs.get(prefix), "paged_cow")
        axes.set_title(f"prefix of {prefix} tokens")
    grid[0][0].set_ylabel("output tokens/step at capacity,\ncontiguous buddy oracle = 1")
    figure.legend(handles=[paper_handle()], loc="upper center", bbox_to_anchor=(0.5, 0.02))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    explain_unbound(figure, points["saturated_share"])
    plotted = with_paper(points, theirs, "shared_len")
    return save(figure, "shared_prefix_capacity", folder, plotted, jobs_of(rows, jobs))


def _draw_latency(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    prefixes = sorted(rows["shared_len"].unique())
    figure, grid = plt.subplots(
        1, len(prefixes), squeeze=False, sharey=True, figsize=(0.8 + 3.2 * len(prefixes), 3.0)
    )
    frames = []
    for axes, prefix in zip(grid[0], prefixes, strict=True):
        points = rate_points(rows[rows["shared_len"] == prefix])
        rate_lines(axes, points, "normalised_latency_ms")
        frames.append(points.assign(shared_len=prefix))
        axes.set_title(f"prefix of {prefix} tokens")
        axes.set_xlabel("requests/s of virtual time")
    grid[0][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel("normalised latency, ms/token\n(a step takes 20 ms)")
    plotted = pd.concat(frames, ignore_index=True)
    handles = line_handles(rows)
    figure.legend(handles=handles, loc="upper center", ncol=4, bbox_to_anchor=(0.5, 0.0))
    if len(drawn := plotted[~plotted["past_knee"]]):
        figure.suptitle(drawn_memory_note(drawn), fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    explain_knee(figure, plotted)
    return save(figure, "shared_prefix_latency", folder, plotted, jobs_of(rows, jobs))

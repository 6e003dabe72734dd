"""Chats: capacity, hits of the prefix cache and latency over a rate (PagedAttention, Fig. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from experiments.capacity_figure import (
    capacity_points,
    colour_of,
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

PANELS = (
    ("normalised_latency_ms", 1.0, "normalised latency, ms/token\n(a step takes 20 ms)"),
    ("prefix_hit_rate", 100.0, "prompt tokens found cached, %"),
)


def draw(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """`chatbot_capacity`, and `chatbot_rates` where rates were run."""
    rows = rows[(rows["status"] == "complete") & (rows["executor"] == "simulated")]
    paths = []
    with style():
        capacity = rows[rows["part"] == "capacity"]
        if len(capacity):
            paths += _draw_capacity(capacity, jobs, folder)
        rates = rows[rows["part"] == "rates"]
        if len(rates):
            paths += _draw_rates(rates, jobs, folder)
    return paths


def _draw_capacity(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    theirs = published("pagedattention")["fig17_throughput_ratio"]
    points = capacity_points(rows, ["workload"], "oracle")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
    ratio_bars(left, points, theirs["oracle"], "paged")
    left.set_ylabel("output tokens/step at capacity,\ncontiguous buddy oracle = 1")
    hits = points[points["prefix_hit_rate"] > 0]
    for x, (_, point) in enumerate(hits.iterrows()):
        height = 100 * point["prefix_hit_rate"]
        right.bar(x, height, 0.6, color=colour_of(point), zorder=2)
        right.annotate(f"{height:.1f}", (x, height), ha="center", va="bottom", fontsize=7)
    right.set_xticks(range(len(hits)), list(hits["strategy"]))
    right.set_ylabel("prompt tokens found cached, %")
    figure.legend(handles=[paper_handle()], loc="upper center", bbox_to_anchor=(0.5, 0.02))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    explain_unbound(figure, points["saturated_share"])
    plotted = with_paper(points, theirs, "expected")
    return save(figure, "chatbot_capacity", folder, plotted, jobs_of(rows, jobs))


def _draw_rates(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    figure, grid = plt.subplots(1, len(PANELS), figsize=(8.4, 3.2))
    points = rate_points(rows)
    for axes, (metric, scale, label) in zip(grid, PANELS, strict=True):
        rate_lines(axes, points, metric, scale)
        axes.set_ylabel(label)
        axes.set_xlabel("new chats/s of virtual time")
        axes.set_ylim(bottom=0)
    handles = line_handles(rows)
    figure.legend(handles=handles, loc="upper center", ncol=4, bbox_to_anchor=(0.5, 0.0))
    figure.suptitle(drawn_memory_note(points), fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    explain_knee(figure, points)
    return save(figure, "chatbot_rates", folder, points, jobs_of(rows, jobs))

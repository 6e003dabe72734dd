"""The attention kernel's latency, and latency over page size (PagedAttention, Fig. 18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import attention_latency
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import from_zero, line_handles, looks_of
from experiments.paper.page_sizes import (
    LATENCY,
    PRESSED_RATES,
    draw_panel,
    in_use,
    largest_good_page,
    latencies,
)
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.plotting import jobs_of, save
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

MARGIN = 0.1
"""A page size is as good as the best if its latency is at most a tenth higher."""


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig18b`; and `paper_fig18a` where the kernels were measured into the same results."""
    paths = []
    measured = _measured(jobs)
    with style.context():
        if measured is not None:
            paths += attention_latency.draw(measured, folder, "paper_fig18a", style)
        chosen = rows[rows["part"] == "fig18"]
        if len(chosen):
            paths += _draw_page_sizes(chosen, jobs, folder, style)
    return paths


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """What paging costs the kernel, and the page sizes that are as good as the best."""
    theirs = published_numbers()
    found = []
    measured = _measured(jobs)
    if measured is not None:
        ends = tuple(theirs["fig18a_kernel_overhead_percent"])
        for (batch, context), overhead in attention_latency.overheads(measured).items():
            found.append(
                Quantity(
                    "18a", f"{batch} sequences of {context} tokens: latency over contiguous",
                    "%", ends, overhead, reason("other_machine"),
                )
            )  # fmt: skip
    chosen = rows[rows["part"] == "fig18"]
    points = latencies(chosen, "rate") if len(chosen) else pd.DataFrame(columns=["workload"])
    for workload in in_use(points["workload"]):
        line = points[
            (points["workload"] == workload) & (points["rate"] == PRESSED_RATES[workload])
        ]
        low, high = theirs["fig18b_best_page_sizes"][workload]
        if line.empty:
            continue
        found.append(
            Quantity(
                "18b", f"{workload}: largest page size within 10 % of the best latency", "tokens",
                float(high), Interval(largest_good_page(line, MARGIN), math.nan, 1),
                reason("kernel_speed"),
            )
        )  # fmt: skip
        best = float(line.loc[line[LATENCY.metric].idxmin(), "page_size"])
        found.append(
            Quantity(
                "18b", f"{workload}: page size of the best latency", "tokens",
                (float(low), float(high)), Interval(best, math.nan, 1), reason("kernel_speed"),
            )
        )  # fmt: skip
    return found


def _draw_page_sizes(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    points = latencies(rows, "rate")
    workloads = in_use(points["workload"])
    figure, grid = subplots(style, 1, len(workloads), PanelSize(3.8, 2.8))
    for axes, workload in zip(grid[0], workloads, strict=True):
        looks = looks_of(sorted(points[points["workload"] == workload]["rate"].unique()))
        best = published_numbers()["fig18b_best_page_sizes"][workload]
        draw_panel(axes, points, "rate", looks, workload, best)
        labels = {rate: f"{rate:g} requests/s" for rate in looks}
        axes.legend(handles=line_handles(looks, labels), loc="upper left", fontsize=note_size())
    from_zero(grid[0])
    title = "Fig. 18 (b): OPT-13B; shaded: page sizes that the paper calls best"
    arrange(figure, style, title=title)
    return save(figure, "paper_fig18b", folder, points, jobs_of(rows, jobs))


def _measured(jobs: Sequence[Job]) -> pd.DataFrame | None:
    return attention_latency.load(jobs[0].root) if jobs else None

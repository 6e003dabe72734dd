"""Swapping against recomputation over page sizes (PagedAttention, Fig. 19)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.line_panels import Look, from_zero, line_handles
from experiments.paper.page_sizes import LATENCY, PRESSED_RATES, draw_panel, in_use, latencies
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.plotting import jobs_of, save
from harness.measure.statistics import t_interval
from harness.runs.jobs import Job

LOOKS: dict[object, Look] = {
    "recompute": Look("#0072B2", "o"),
    "swap": Look("#D55E00", "s", "--"),
}


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig19`: a panel a workload."""
    chosen = _chosen(rows)
    if chosen.empty:
        return []
    points = latencies(chosen, "preemption")
    workloads = in_use(points["workload"])
    with style.context():
        figure, grid = subplots(style, 1, len(workloads), PanelSize(3.8, 2.6))
        for axes, workload in zip(grid[0], workloads, strict=True):
            alike = published_numbers()["fig19_preemption"]["comparable_page_sizes"]
            draw_panel(axes, points, "preemption", LOOKS, workload, alike)
            axes.set_title(f"{workload}, {PRESSED_RATES[workload]:g} requests/s")
        from_zero(grid[0])
        title = "Fig. 19: OPT-13B; shaded: page sizes that the paper calls alike"
        arrange(figure, style, title=title, handles=line_handles(LOOKS))
        return save(figure, "paper_fig19", folder, points, jobs_of(chosen, jobs))


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """Latency with recomputation over that with swapping, at the page sizes of which the paper
    says that both are alike, seed by seed."""
    chosen = _chosen(rows)
    theirs = published_numbers()["fig19_preemption"]
    found = []
    for workload in in_use(chosen["workload"]):
        for size in theirs["comparable_page_sizes"]:
            cell = chosen[(chosen["workload"] == workload) & (chosen["page_size"] == size)]
            by_seed = cell.pivot_table(LATENCY.metric, "seed", "preemption")
            if {"recompute", "swap"} <= set(by_seed.columns):
                ratios = (by_seed["recompute"] / by_seed["swap"]).to_numpy(dtype=float)
                found.append(
                    Quantity(
                        "19", f"{workload}, pages of {size}: latency, recomputed over swapped",
                        "x", (-math.inf, theirs["recompute_latency_over_swap_at_most"]),
                        t_interval(ratios),
                        reason("alpaca_lengths" if workload == "alpaca_like" else ""),
                    )
                )  # fmt: skip
    return found


def _chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs at the rates at which memory is scarce, of Fig. 18 (recomputed) and of this one."""
    rates = rows["workload"].map(PRESSED_RATES)
    return rows[rows["part"].isin(["fig18", "fig19"]) & (rows["rate"] == rates)]

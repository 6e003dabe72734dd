"""Throughput, latency and waste against page size, with contiguous strategies as references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.checks import SHARES
from experiments.plotting import (
    EXPECTED_COLOURS,
    FIT_DASHES,
    MARKERS,
    STRATEGY_COLOURS,
    WIDTHS,
    class_handles,
    jobs_of,
    means,
    preferred,
    save,
    stack_classes,
    style,
)
from harness.runs.jobs import Job

KEYS = ("workload", "allocator", "fit", "expected", "strategy", "page_size")

TIMES = (
    ("output_tokens_per_s", "output tokens/s"),
    ("normalised_latency_ms", "normalised latency, ms/token"),
)


def draw(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """`page_size_times` (where runs were timed) and `page_size_waste`."""
    paths = []
    timed = rows[rows["executor"] != "simulated"]
    with style():
        if len(timed):
            paths += _draw_times(timed, jobs_of(timed, jobs), folder)
        waste = preferred(rows, simulated=True)
        paths += _draw_waste(waste, jobs_of(waste, jobs), folder)
    return paths


def _draw_times(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    points = means(rows, KEYS, [metric for metric, _ in TIMES])
    workloads = list(dict.fromkeys(points["workload"]))
    figure, grid = plt.subplots(
        len(TIMES), len(workloads), figsize=(4.2 * len(workloads), 5.2), squeeze=False,
        sharex=True,
    )  # fmt: skip
    for column, workload in enumerate(workloads):
        of_workload = points[points["workload"] == workload]
        for row, (metric, label) in enumerate(TIMES):
            axes = grid[row][column]
            _draw_lines(axes, of_workload, metric)
            axes.set_ylim(bottom=0)
            if column == 0:
                axes.set_ylabel(label)
        grid[0][column].set_title(workload)
        grid[-1][column].set_xlabel("page size, tokens")
    handles = _line_handles(points)
    figure.legend(handles=handles, loc="lower center", ncol=4, bbox_to_anchor=(0.5, -0.1))
    figure.tight_layout()
    return save(figure, "page_size_times", folder, points, jobs)


def _draw_lines(axes: Axes, points: pd.DataFrame, metric: str) -> None:
    for _, reference in _references(points).iterrows():
        axes.axhline(
            reference[metric], color=EXPECTED_COLOURS.get(reference["expected"], "#999999"),
            dashes=FIT_DASHES.get(reference["fit"], (2, 2)), linewidth=1.2,
        )  # fmt: skip
    for allocator, line in _swept(points).groupby("allocator", sort=False):
        line = line.sort_values("page_size")
        axes.errorbar(
            line["page_size"], line[metric], yerr=line[f"{metric}_ci"].fillna(0),
            color=STRATEGY_COLOURS.get(str(allocator)), marker=MARKERS.get(str(allocator), "D"),
            capsize=2, linewidth=WIDTHS.get(str(allocator), 1.6),
        )  # fmt: skip
    _page_axis(axes, sorted(_swept(points)["page_size"].unique()))


def _page_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def _draw_waste(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    points = means(rows, KEYS, SHARES)
    workloads = list(dict.fromkeys(points["workload"]))
    strategies = sorted(dict.fromkeys(_swept(points)["strategy"]), key=_rung)
    figure, grid = plt.subplots(
        len(workloads), len(strategies), squeeze=False, sharey=True,
        figsize=(1.2 + 2.9 * len(strategies), 0.9 + 2.4 * len(workloads)),
    )  # fmt: skip
    for row, workload in enumerate(workloads):
        of_workload = points[points["workload"] == workload]
        for column, strategy in enumerate(strategies):
            axes = grid[row][column]
            bars = of_workload[of_workload["strategy"] == strategy].sort_values("page_size")
            if bars.empty:
                axes.set_axis_off()
                continue
            stack_classes(axes, range(len(bars)), bars)
            axes.set_xticks(range(len(bars)), [str(size) for size in bars["page_size"]])
            _draw_reference_lines(axes, of_workload)
            axes.set_title(f"{strategy} · {workload}")
            axes.set_xlabel("page size, tokens")
        grid[row][0].set_ylabel("share of the pool, %")
    handles = [*class_handles(points), *_reference_handles(points)]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return save(figure, "page_size_waste", folder, points, jobs)


def _draw_reference_lines(axes: Axes, points: pd.DataFrame) -> None:
    """Tokens under the contiguous strategies: as high as the bars' lowest part would be."""
    for _, reference in _references(points).iterrows():
        dashes = FIT_DASHES.get(reference["fit"], (2, 2))
        height = 100 * reference["utilisation"]
        axes.axhline(height, color="white", linewidth=1.9, alpha=0.8, zorder=3)
        axes.axhline(
            height, color=EXPECTED_COLOURS.get(reference["expected"], "#999999"), dashes=dashes,
            linewidth=1.3, zorder=4,
        )  # fmt: skip


def _rung(strategy: str) -> int:
    """Place on the ladder of strategies; any other comes last."""
    ladder = list(MARKERS)
    return ladder.index(strategy) if strategy in ladder else len(ladder)


def _references(points: pd.DataFrame) -> pd.DataFrame:
    return points[points["allocator"] == "contiguous"]


def _swept(points: pd.DataFrame) -> pd.DataFrame:
    swept = points[points["allocator"] != "contiguous"]
    return swept if len(swept) else points


def _line_handles(points: pd.DataFrame) -> list[Line2D]:
    lines = [
        Line2D([], [], color=STRATEGY_COLOURS.get(name), marker=MARKERS.get(name, "D"), label=name)
        for name in sorted(dict.fromkeys(_swept(points)["allocator"]), key=_rung)
    ]
    return [*lines, *_reference_handles(points)]


def _reference_handles(points: pd.DataFrame) -> list[Line2D]:
    unique = _references(points).drop_duplicates("strategy")
    return [
        Line2D(
            [], [], color=EXPECTED_COLOURS.get(row["expected"], "#999999"),
            dashes=FIT_DASHES.get(row["fit"], (2, 2)), linewidth=1.3, label=row["strategy"],
        )
        for _, row in unique.iterrows()
    ]  # fmt: skip

"""Throughput, latency and waste against page size, with contiguous strategies as references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.checks import SHARES
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.interference import measured_notes
from experiments.plotting import (
    EXPECTED_COLOURS,
    FIT_DASHES,
    MARKERS,
    STRATEGY_COLOURS,
    class_handles,
    jobs_of,
    line_width,
    means,
    of_first_part,
    preferred,
    save,
    shade_interval,
    stack_classes,
    thin_line,
)
from harness.runs.jobs import Job

KEYS = ("workload", "allocator", "fit", "expected", "strategy", "page_size")

TIMES = (
    ("output_tokens_per_s", "output tokens/s"),
    ("normalised_latency_ms", "normalised latency, ms/token"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`page_size_times` (where runs were timed) and `page_size_waste`."""
    paths = []
    timed = rows[rows["executor"] != "simulated"]
    with style.context():
        if len(timed):
            paths += _draw_times(timed, jobs_of(timed, jobs), folder, style)
        waste = of_first_part(preferred(rows, simulated=True))
        paths += _draw_waste(waste, jobs_of(waste, jobs), folder, style)
    return paths


def _draw_times(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    points = means(rows, KEYS, [metric for metric, _ in TIMES])
    workloads = list(dict.fromkeys(points["workload"]))
    figure, grid = subplots(style, len(TIMES), len(workloads), PanelSize(4.2, 2.6), sharex=True)
    for column, workload in enumerate(workloads):
        of_workload = points[points["workload"] == workload]
        for row, (metric, label) in enumerate(TIMES):
            axes = grid[row][column]
            _draw_lines(axes, of_workload, metric)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(label)
            axes.set_xlabel("page size, tokens")
        grid[0][column].set_title(workload)
    notes = measured_notes(rows, points)
    arrange(figure, style, handles=_line_handles(points), notes=notes)
    return save(figure, "page_size_times", folder, points, jobs)


def _draw_lines(axes: Axes, points: pd.DataFrame, metric: str) -> None:
    for _, reference in _references(points).iterrows():
        colour = EXPECTED_COLOURS.get(reference["expected"], "#999999")
        axes.axhline(
            reference[metric], color=colour,
            dashes=FIT_DASHES.get(reference["fit"], (2, 2)), linewidth=thin_line(),
        )  # fmt: skip
        shade_interval(axes, reference, metric, colour)
    for allocator, line in _swept(points).groupby("allocator", sort=False):
        line = line.sort_values("page_size")
        axes.errorbar(
            line["page_size"], line[metric], yerr=line[f"{metric}_ci"].fillna(0),
            color=STRATEGY_COLOURS.get(str(allocator)), marker=MARKERS.get(str(allocator), "D"),
            capsize=2, linewidth=line_width(str(allocator)),
        )  # fmt: skip
    _page_axis(axes, sorted(_swept(points)["page_size"].unique()))


def _page_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def _draw_waste(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    points = means(rows, KEYS, SHARES)
    workloads = list(dict.fromkeys(points["workload"]))
    strategies = sorted(dict.fromkeys(_swept(points)["strategy"]), key=_rung)
    found = set(zip(points["workload"], points["strategy"], strict=True))
    missing = [
        (row, column)
        for row, workload in enumerate(workloads)
        for column, strategy in enumerate(strategies)
        if (workload, strategy) not in found
    ]
    size = PanelSize(3.2, 2.6)
    figure, grid = subplots(
        style, len(workloads), len(strategies), size, sharey=True, missing=missing
    )
    for row, workload in enumerate(workloads):
        of_workload = points[points["workload"] == workload]
        for column, strategy in enumerate(strategies):
            axes = grid[row][column]
            if axes is None:
                continue
            bars = of_workload[of_workload["strategy"] == strategy].sort_values("page_size")
            stack_classes(axes, range(len(bars)), bars)
            axes.set_xticks(range(len(bars)), [str(size) for size in bars["page_size"]])
            _draw_reference_lines(axes, of_workload)
            axes.set_title(f"{strategy} · {workload}")
            axes.set_xlabel("page size, tokens")
            axes.set_ylabel("share of the pool, %")
    handles = [*class_handles(points), *_reference_handles(points)]
    arrange(figure, style, handles=handles, beside=True)
    return save(figure, "page_size_waste", folder, points, jobs)


def _draw_reference_lines(axes: Axes, points: pd.DataFrame) -> None:
    """Tokens under the contiguous strategies: as high as the bars' lowest part would be."""
    for _, reference in _references(points).iterrows():
        dashes = FIT_DASHES.get(reference["fit"], (2, 2))
        height = 100 * reference["utilisation"]
        axes.axhline(height, color="white", linewidth=line_width(), alpha=0.8, zorder=3)
        axes.axhline(
            height, color=EXPECTED_COLOURS.get(reference["expected"], "#999999"), dashes=dashes,
            linewidth=thin_line(), zorder=4,
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
            dashes=FIT_DASHES.get(row["fit"], (2, 2)), linewidth=thin_line(),
            label=row["strategy"],
        )
        for _, row in unique.iterrows()
    ]  # fmt: skip

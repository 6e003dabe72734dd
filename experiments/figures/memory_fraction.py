"""What a larger share of the device's memory buys each strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.interference import measured_notes
from experiments.plotting import (
    EXPECTED_COLOURS,
    MARKERS,
    STRATEGY_COLOURS,
    jobs_of,
    line_width,
    means,
    save,
)
from harness.runs.jobs import Job

KEYS = ("workload", "strategy", "allocator", "expected", "memory_fraction")

SIMULATED = (
    ("utilisation", 100.0, "used share of the pool, %"),
    ("batched_requests", 1.0, "batched requests"),
    ("saturated_share", 100.0, "queue waits for memory, % of time"),
    ("preemptions", 1.0, "preemptions"),
    ("num_refused", 1.0, "refused requests"),
)

TIMED = (
    ("output_tokens_per_s", 1.0, "output tokens/s"),
    ("normalised_latency_ms", 1.0, "normalised latency, ms/token"),
    *SIMULATED[2:],
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`memory_fraction_simulated` and `memory_fraction_times`, where there are such runs."""
    rows = rows[rows["memory_fraction"].notna()]
    paths = []
    with style.context():
        for name, of_kind, panels in (
            ("simulated", rows[rows["executor"] == "simulated"], SIMULATED),
            ("times", rows[rows["executor"] != "simulated"], TIMED),
        ):
            if len(of_kind):
                figure, points = _draw_grid(of_kind, panels, style)
                file = f"memory_fraction_{name}"
                paths += save(figure, file, folder, points, jobs_of(of_kind, jobs))
    return paths


def _draw_grid(
    rows: pd.DataFrame, panels: Sequence[tuple[str, float, str]], style: FigureStyle
) -> tuple[Figure, pd.DataFrame]:
    points = means(rows, KEYS, [metric for metric, _, _ in panels])
    panels = [panel for panel in panels if points[panel[0]].max() > 0]
    workloads = list(dict.fromkeys(points["workload"]))
    figure, grid = subplots(
        style, len(panels), len(workloads), PanelSize(4.0, 2.0), sharex=True, sharey="row"
    )
    for column, workload in enumerate(workloads):
        of_workload = points[points["workload"] == workload]
        for row, (metric, scale, label) in enumerate(panels):
            _draw_lines(grid[row][column], of_workload, metric, scale)
            grid[row][column].set_ylabel(label.replace(", ", ",\n"))
            grid[row][column].set_xlabel("memory fraction")
        grid[0][column].set_title(workload)
    for axes in grid[:, 0]:  # once all are drawn: it stops the shared axes from growing
        axes.set_ylim(bottom=0)
    handles = grid[0][0].get_legend_handles_labels()[0]
    arrange(figure, style, handles=handles, notes=measured_notes(rows, points))
    return figure, points


def _draw_lines(axes: Axes, points: pd.DataFrame, metric: str, scale: float) -> None:
    for strategy, line in points.groupby("strategy", sort=False):
        line = line.sort_values("memory_fraction")
        allocator, expected = line.iloc[0]["allocator"], line.iloc[0]["expected"]
        is_contiguous = allocator == "contiguous"
        colours = EXPECTED_COLOURS if is_contiguous else STRATEGY_COLOURS
        axes.errorbar(
            line["memory_fraction"], scale * line[metric],
            yerr=scale * line[f"{metric}_ci"].fillna(0), label=str(strategy), capsize=2,
            color=colours.get(expected if is_contiguous else allocator),
            marker=MARKERS.get(allocator, "D"), linestyle="--" if is_contiguous else "-",
            linewidth=line_width(allocator),
        )  # fmt: skip

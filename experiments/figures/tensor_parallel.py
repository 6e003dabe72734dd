"""What the ranks of a split model hold together, and what rank 0 sends each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.interference import measured_notes
from experiments.line_panels import Panel, draw_lines, from_zero, line_handles, looks_of
from experiments.other_settings import other_settings
from experiments.plotting import jobs_of, means, save
from harness.runs.jobs import Job

PANELS = (
    Panel("pool_tokens", "pool, thousand tokens", 1e-3),
    Panel("utilisation", "used share of the pool, %", 100.0),
    Panel("batched_requests", "batched requests"),
    Panel("broadcast_bytes_per_step", "sent to each rank, KiB a step", 2**-10),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`tensor_parallel`: four panels over the number of ranks."""
    ranks = {job.run_id: job.config.engine.tensor_parallel for job in jobs}
    rows = rows[rows["status"] == "complete"]
    rows = rows.assign(ranks=rows["run_id"].map(ranks))
    if rows["ranks"].nunique() < 2:
        return []
    rest = other_settings(rows, jobs, lambda key: key != "engine.tensor_parallel")
    lines = [
        f"{strategy}, {said}" if said else strategy
        for strategy, said in zip(rows["strategy"], rest, strict=True)
    ]
    rows = rows.assign(line=lines)
    points = means(rows, ("ranks", "line"), [panel.metric for panel in PANELS])
    looks = looks_of(list(points["line"]))
    with style.context():
        figure, grid = subplots(style, 1, len(PANELS), PanelSize(2.6, 2.4), sharex=True)
        for axes, panel in zip(grid[0], PANELS, strict=True):
            draw_lines(axes, points, "ranks", "line", panel, looks)
            axes.set_xticks(sorted(set(points["ranks"])))
            axes.set_xlabel("ranks")
        from_zero(list(grid[0]))
        notes = measured_notes(rows, points)
        arrange(figure, style, handles=line_handles(looks), notes=notes)
        return save(figure, "tensor_parallel", folder, points, jobs_of(rows, jobs))

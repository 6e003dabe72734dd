"""How much of agents' growing contexts is found again: by capacity, eviction, concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.line_panels import (
    Look,
    Panel,
    draw_lines,
    from_zero,
    line_handles,
    memory_note,
    power_ticks,
)
from experiments.plotting import STRATEGY_COLOURS, jobs_of, means, save
from harness.runs.jobs import Job

LOOKS = {
    "paged": Look(STRATEGY_COLOURS["paged"], "o"),
    "paged_cow": Look(STRATEGY_COLOURS["paged_cow"], "^"),
    "paged_prefix": Look(STRATEGY_COLOURS["paged_prefix"], "s"),
    "paged_prefix lru": Look(STRATEGY_COLOURS["paged_prefix"], "s"),
    "paged_prefix lfu": Look("#E69F00", "D", "--"),
    "paged_prefix fifo": Look("#4D4D4D", "v", ":"),
}

PANELS = (
    Panel("prefix_hit_rate", "prompt tokens found\nin the cache, %", 100.0),
    Panel("computed_per_output", "prompt tokens computed\nper output token"),
    Panel("tokens_per_step", "output tokens/step"),
    Panel("saturated_share", "queue waits for memory,\n% of the time", 100.0),
)

AXES = (
    ("capacity", "pool_tokens", "pool, tokens"),
    ("concurrency", "concurrency", "sessions at once"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`rag_agents_capacity` and `rag_agents_concurrency`, where there are such simulated runs."""
    rows = rows[(rows["executor"] == "simulated") & (rows["status"] == "complete")]
    if rows.empty:
        return []
    computed = rows["prompt_tokens"] - rows["cached_tokens"] + rows["recomputed_tokens"]
    rows = rows.assign(
        line=[_line(*names) for names in zip(rows["allocator"], rows["eviction"], strict=True)],
        computed_per_output=computed / rows["output_tokens"],
        tokens_per_step=rows["output_tokens"] / rows["num_steps"],
    )
    paths = []
    with style.context():
        for part, x, label in AXES:
            of_part = _rows_of(rows, part, x)
            if len(of_part):
                figure, points = _draw_part(of_part, x, label, style)
                name = f"rag_agents_{part}"
                paths += save(figure, name, folder, points, jobs_of(of_part, jobs))
    return paths


def _rows_of(rows: pd.DataFrame, part: str, x: str) -> pd.DataFrame:
    """Runs of a part, and those of the other that differ in `x` alone: none is run twice."""
    own = rows[rows["part"] == part]
    other = "concurrency" if x == "pool_tokens" else "pool_tokens"
    return rows[rows[other].isin(own[other])] if own[other].nunique() == 1 else own


def _line(allocator: str, eviction: object) -> str:
    return f"{allocator} {eviction}" if isinstance(eviction, str) else allocator


def _draw_part(
    rows: pd.DataFrame, x: str, label: str, style: FigureStyle
) -> tuple[Figure, pd.DataFrame]:
    points = means(rows, ["workload", "line", x], [panel.metric for panel in PANELS])
    looks = {name: look for name, look in LOOKS.items() if name in set(points["line"])}
    figure, (grid,) = subplots(style, 1, len(PANELS), PanelSize(3.0, 2.6))
    for axes, panel in zip(grid, PANELS, strict=True):
        draw_lines(axes, points, x, "line", panel, looks)
        power_ticks(axes, points[x])
        if x == "pool_tokens":
            axes.set_xticks(
                sorted(set(points[x])), [f"{value / 1024:g}k" for value in sorted(set(points[x]))]
            )
        axes.set_xlabel(label)
    from_zero(list(grid))
    workload = ", ".join(dict.fromkeys(points["workload"]))
    title = f"{workload} (simulated): {memory_note(rows)}"
    arrange(figure, style, title=title, handles=line_handles(looks))
    return figure, points

"""What drafts bring at a given acceptance, and what memory they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.interference import measured_notes
from experiments.line_panels import (
    Panel,
    draw_lines,
    from_zero,
    line_handles,
    looks_of,
    memory_note,
)
from experiments.plotting import jobs_of, means, save, shade_interval
from harness.engine.scheduling.speculation import expected_tokens_per_step
from harness.runs.jobs import Job

PLAIN = "#666666"

INJECTED = (
    Panel("tokens_per_pass", "tokens per sequence and step"),
    Panel("steps_per_token", "steps per output token"),
    Panel("batched_requests", "batched requests"),
    Panel("preemptions", "preemptions"),
    Panel("rejected_per_token", "rejected drafts\nper output token"),
)

TIMES = (
    Panel("output_tokens_per_s", "output tokens/s"),
    Panel("tokens_per_pass", "tokens per sequence and step"),
    Panel("tpot_ms", "time per output token, ms"),
)

DRAFTS = (
    TIMES[0],
    TIMES[1],
    Panel("acceptance_rate", "drafts accepted, %", 100.0),
    Panel("draft_pool_share", "KV memory that\nthe draft model has, %", 100.0),
    Panel("batched_requests", "batched requests"),
)

OF_DRAFTS_ALONE = ("acceptance_rate", "draft_pool_share")
"""Metrics that mean nothing without drafts."""

PARTS = (
    (
        "injected",
        INJECTED,
        "Injected acceptance, simulated: each draft is right with probability a",
    ),
    ("times", TIMES, "Injected acceptance, timed: each draft is right with probability a"),
    ("drafts", DRAFTS, "Prompt lookup (ngram) and draft models, timed, at the model's own output"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`speculative_decoding_PART` for each of `injected`, `times`, `drafts` that has runs."""
    rows = rows[rows["status"] == "complete"]
    if rows.empty:
        return []
    rows = _derived(rows)
    paths: list[Path] = []
    with style.context():
        for part, panels, title in PARTS:
            of_part = rows[rows["part"] == part]
            if len(of_part):
                figure, points = _draw_part(of_part, panels, title, style)
                name = f"speculative_decoding_{part}"
                paths += save(figure, name, folder, points, jobs_of(of_part, jobs))
    return paths


def _derived(rows: pd.DataFrame) -> pd.DataFrame:
    """tokens_per_pass: those after a request's first, which no draft precedes, over the passes
    that a sequence took for them; a pass emits the accepted drafts and one token more.
    draft_pool_share: of the KV memory of both models."""
    decoded = rows["output_tokens"] - rows["num_finished"]
    accepted = rows["accepted_tokens"]
    return rows.assign(
        tokens_per_pass=decoded / (decoded - accepted),
        steps_per_token=rows["num_steps"] / rows["output_tokens"],
        rejected_per_token=(rows["drafted_tokens"] - accepted) / rows["output_tokens"],
        draft_pool_share=rows["draft_pool_bytes"] / (rows["draft_pool_bytes"] + rows["pool_bytes"]),
        line=[_line(row) for _, row in rows.iterrows()],
        acceptance=rows["acceptance"].where(rows["speculation"] == "injected"),
    )


def _line(row: pd.Series) -> float | str:
    """What one line of the figure is of: an acceptance, or whoever drafts."""
    match row["speculation"]:
        case "injected":
            return float(row["acceptance"])
        case "draft_model":
            name = Path(row["draft"]).name
            return f"draft model {name}" + (", the model itself" if name == row["model"] else "")
        case "ngram":
            return "prompt lookup"
        case other:
            return str(other)


def _draw_part(
    rows: pd.DataFrame, panels: Sequence[Panel], title: str, style: FigureStyle
) -> tuple[Figure, pd.DataFrame]:
    keys = ["speculation", "line", "acceptance", "num_drafts"]
    points = means(rows, keys, [panel.metric for panel in panels])
    plain = points[points["speculation"] == "none"]
    drafted = points[points["speculation"] != "none"]
    looks = looks_of(list(drafted["line"]))
    figure, grid = subplots(style, 1, len(panels), PanelSize(2.6, 2.8))
    for axes, panel in zip(grid[0], panels, strict=True):
        draw_lines(axes, drafted, "num_drafts", "line", panel, looks)
        if panel.metric == "tokens_per_pass":
            _draw_expected(axes, drafted)
        if panel.metric not in OF_DRAFTS_ALONE:
            for _, reference in plain.iterrows():
                axes.axhline(panel.scale * reference[panel.metric], color=PLAIN, dashes=(4, 2))
                shade_interval(axes, reference, panel.metric, PLAIN, panel.scale)
        axes.set_xticks(sorted(set(drafted["num_drafts"])))
        axes.set_xlabel("drafts a step, k")
    from_zero(list(grid[0]))
    labels = {value: f"a = {value:g}" for value in looks if not isinstance(value, str)}
    handles = [
        *line_handles(looks, labels),
        Line2D([], [], color=PLAIN, dashes=(4, 2), label="no drafts"),
    ]
    if drafted["acceptance"].notna().any():
        handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":",
                              label=r"$(1 - a^{k+1}) / (1 - a)$"))  # fmt: skip
    notes = measured_notes(rows, points)
    arrange(figure, style, title=f"{title}; {memory_note(rows)}", handles=handles, notes=notes)
    return figure, points


def _draw_expected(axes: Axes, drafted: pd.DataFrame) -> None:
    """Leviathan et al. (2023), equation 1."""
    for acceptance in drafted["acceptance"].dropna().unique():
        k = np.arange(1, int(drafted["num_drafts"].max()) + 1)
        expected = [expected_tokens_per_step(float(acceptance), int(each)) for each in k]
        axes.plot(k, expected, color="black", linewidth=0.8, linestyle=":", zorder=5)

"""Swap against recompute over page sizes, victims and watermarks, and what knowledge is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.interference import measured_notes
from experiments.line_panels import (
    Look,
    Panel,
    draw_lines,
    from_zero,
    line_handles,
    looks_of,
    memory_note,
    power_ticks,
    published,
)
from experiments.plotting import EXPECTED_COLOURS, jobs_of, means, save, thin_line
from harness.runs.jobs import Job

MODES = {"recompute": Look("#0072B2", "o"), "swap": Look("#D55E00", "s", "--")}

PAGE_PANELS = (
    Panel("normalised_latency_ms", "normalised latency,\nms/token"),
    Panel("output_tokens_per_s", "output tokens/s"),
    Panel("stalled_per_token_ms", "stalled while preempted,\nms/token"),
    Panel("recomputed_per_token", "recomputed tokens\nper output token"),
    Panel("swapped_per_token_kib", "swapped out and in,\nKiB per output token"),
    Panel("preemptions", "preemptions"),
)

COST_PANELS = {
    "recompute": Panel("recomputed_per_token", "recomputed tokens\nper output token"),
    "swap": Panel("swapped_per_token_kib", "swapped out and in,\nMiB per output token", 1 / 1024),
}
"""What a preemption costs, by its kind: the other one is always 0."""

POLICY_PANELS = (
    Panel("preemptions", "preemptions"),
    Panel("tokens_per_step", "output tokens/step"),
)

KNOWLEDGE_PANELS = (
    Panel("utilisation", "used share of the pool, %", 100.0),
    Panel("tokens_per_step", "output tokens/step"),
    Panel("preemptions", "preemptions"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`preemption_pages`, `preemption_policies`, `preemption_knowledge`, where there are runs."""
    rows = rows[rows["status"] == "complete"]
    if rows.empty:
        return []
    rows = _derived(rows)
    paths: list[Path] = []
    with style.context():
        for part, make in (
            ("times", _draw_pages),
            ("policies", _draw_policies),
            ("knowledge", _draw_knowledge),
        ):
            of_part = _rows_of(rows, part)
            if len(of_part):
                figure, points, name = make(of_part, style)
                paths += save(figure, name, folder, points, jobs_of(of_part, jobs))
    return paths


def _rows_of(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """Runs of a part; to `knowledge` belongs the one policy that knows nothing, run only once."""
    own = rows[rows["part"] == part]
    if part != "knowledge" or own.empty:
        return own
    plain = rows[(rows["part"] == "policies") & (rows["expected"] == "none")]
    for key in ("victim", "watermark", "preemption", "executor"):
        plain = plain[plain[key].isin(own[key])]
    return pd.concat([own, plain])


def _derived(rows: pd.DataFrame) -> pd.DataFrame:
    """Costs for each token of the output, so that workloads compare."""
    tokens = rows["output_tokens"]
    return rows.assign(
        recomputed_per_token=rows["recomputed_tokens"] / tokens,
        swapped_per_token_kib=rows["swapped_bytes"] / 1024 / tokens,
        stalled_per_token_ms=1e3 * rows["stalled_s"] / tokens,
        tokens_per_step=tokens / rows["num_steps"],
    )


def _draw_pages(rows: pd.DataFrame, style: FigureStyle) -> tuple[Figure, pd.DataFrame, str]:
    keys = ["workload", "preemption", "page_size"]
    points = means(rows, keys, [panel.metric for panel in PAGE_PANELS])
    workloads = list(dict.fromkeys(points["workload"]))
    comparable = published("pagedattention")["fig19_preemption"]["comparable_page_sizes"]
    figure, grid = subplots(style, len(workloads), len(PAGE_PANELS), PanelSize(3.3, 2.2), most=3)
    titles = []
    for index, workload in enumerate(workloads):
        chosen = points[points["workload"] == workload]
        for axes, panel in zip(grid[index], PAGE_PANELS, strict=True):
            axes.axvspan(*comparable, color="#EEEEEE", zorder=0)
            draw_lines(axes, chosen, "page_size", "preemption", panel, MODES)
            power_ticks(axes, chosen["page_size"])
            axes.set_xlabel("page size, tokens")
            axes.set_title(workload)
        titles.append(f"{workload}: {memory_note(rows[rows['workload'] == workload])}")
    from_zero(list(grid.flat))
    grey = Patch(color="#EEEEEE", label="alike in the PagedAttention paper's Fig. 19")
    handles = [*line_handles(MODES), grey]
    notes = measured_notes(rows, points)
    arrange(figure, style, title="\n".join(titles), handles=handles, notes=notes)
    return figure, points, "preemption_pages"


def _draw_policies(rows: pd.DataFrame, style: FigureStyle) -> tuple[Figure, pd.DataFrame, str]:
    keys = ["preemption", "victim", "watermark"]
    panels = (*POLICY_PANELS, *COST_PANELS.values())
    points = means(rows, keys, [panel.metric for panel in panels])
    modes = [mode for mode in MODES if mode in set(points["preemption"])]
    looks = looks_of(points["victim"])
    size = PanelSize(3.2, 2.2)
    figure, grid = subplots(style, len(modes), len(POLICY_PANELS) + 1, size, sharex=True)
    points = points.assign(percent=100 * points["watermark"])
    for line, mode in zip(grid, modes, strict=True):
        chosen = points[points["preemption"] == mode]
        for axes, panel in zip(line, (*POLICY_PANELS, COST_PANELS[mode]), strict=True):
            draw_lines(axes, chosen, "percent", "victim", panel, looks)
            axes.set_title(mode)
            axes.set_xlabel("watermark, % of the pool")
    from_zero(list(grid.flat))
    title = f"Whom a preemption hits (simulated): {memory_note(rows)}"
    arrange(figure, style, title=title, handles=line_handles(looks))
    return figure, points, "preemption_policies"


def _draw_knowledge(rows: pd.DataFrame, style: FigureStyle) -> tuple[Figure, pd.DataFrame, str]:
    keys = ["allocator", "strategy", "expected", "expected_bias", "expected_spread"]
    points = means(rows, keys, [panel.metric for panel in KNOWLEDGE_PANELS])
    allocators = list(dict.fromkeys(points["allocator"]))
    predicted = points[points["expected"] == "predicted"]
    looks = looks_of(sorted(predicted["expected_spread"].unique()))
    figure, grid = subplots(
        style, len(allocators), len(KNOWLEDGE_PANELS), PanelSize(3.2, 2.3), sharex=True,
        sharey="col",
    )  # fmt: skip
    for line, allocator in zip(grid, allocators, strict=True):
        chosen = points[points["allocator"] == allocator]
        for axes, panel in zip(line, KNOWLEDGE_PANELS, strict=True):
            guesses = chosen[chosen["expected"] == "predicted"]
            draw_lines(axes, guesses, "expected_bias", "expected_spread", panel, looks)
            _draw_references(axes, chosen[chosen["expected"] != "predicted"], panel)
            axes.set_title(f"{allocator}, reserving")
            if len(guesses):
                power_ticks(axes, guesses["expected_bias"])
            axes.set_xlabel("median guess / true output")
    from_zero(list(grid.flat))
    title = f"What is known of output lengths (simulated): {memory_note(rows)}"
    labels = {spread: f"guess, spread {spread:g}" for spread in looks}
    handles = line_handles(looks, labels)
    for name in dict.fromkeys(points[points["expected"] != "predicted"]["expected"]):
        look = Look(_reference_colour(name), "", "--")
        handles += line_handles({name: look}, {"none": "none (grows page by page)"})
    arrange(figure, style, title=title, handles=handles)
    return figure, points, "preemption_knowledge"


def _draw_references(axes: Axes, references: pd.DataFrame, panel: Panel) -> None:
    for _, reference in references.iterrows():
        axes.axhline(
            panel.scale * reference[panel.metric], linestyle="--", linewidth=thin_line(),
            color=_reference_colour(reference["expected"]),
        )  # fmt: skip


def _reference_colour(expected: str) -> str:
    return EXPECTED_COLOURS.get(expected, "#56B4E9")

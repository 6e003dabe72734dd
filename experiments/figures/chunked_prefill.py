"""What long prompts do to running decodes under each schedule: stalls beside throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.interference import measured_notes
from experiments.line_panels import PALETTE, Panel, published
from experiments.plotting import jobs_of, means, save
from harness.runs.jobs import Job

PANELS = (
    Panel("itl_p99_ms", "p99 time between tokens, ms"),
    Panel("itl_p50_ms", "median time between tokens, ms"),
    Panel("output_tokens_per_s", "output tokens/s"),
    Panel("ttft_p99_ms", "p99 time to first token, s", 1e-3),
)

COLOURS = dict(
    zip(("mixed_chunked", "mixed_unchunked", "prefill_first", "static"), PALETTE, strict=False)
)

BAR_IN = 0.28
"""For a bar with its name."""

KEYS = ("workload", "schedule", "token_budget")


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`chunked_prefill`: a row of bars a schedule and chunk size, a panel a metric."""
    rows = rows[(rows["executor"] != "simulated") & (rows["status"] == "complete")]
    if rows.empty:
        return []
    points = means(rows, KEYS, [panel.metric for panel in PANELS])
    points["order"] = [list(COLOURS).index(name) for name in points["schedule"]]
    points = points.sort_values(["workload", "order", "token_budget"]).drop(columns="order")
    workloads = list(dict.fromkeys(points["workload"]))
    with style.context():
        bars = max((points["workload"] == workload).sum() for workload in workloads)
        height = style.room(0.6 + BAR_IN * bars)
        panel = PanelSize(2.9, height, keeps_height=True)
        figure, grid = subplots(
            style, len(workloads), len(PANELS), panel, sharey="row", narrowest=2.6
        )
        for line, workload in zip(grid, workloads, strict=True):
            bars = points[points["workload"] == workload].iloc[::-1]
            for axes, panel in zip(line, PANELS, strict=True):
                colours = [COLOURS[name] for name in bars["schedule"]]
                values = panel.scale * bars[panel.metric]
                spread = panel.scale * bars[f"{panel.metric}_ci"].fillna(0)
                drawn = axes.barh(range(len(bars)), values, 0.7, color=colours, zorder=2)
                axes.errorbar(
                    values, range(len(bars)), xerr=spread, fmt="none", color="black", capsize=2,
                    linewidth=0.8, zorder=3,
                )  # fmt: skip
                shown = [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values]
                axes.bar_label(drawn, shown, padding=3, fontsize=note_size())
                axes.set_xlim(0, 1.18 * float((values + spread).max()))
                axes.set_xlabel(panel.label)
            line[0].set_yticks(range(len(bars)), [_label(bar) for _, bar in bars.iterrows()])
        title = "Long prompts arrive while others decode: the same arrivals in every row"
        notes = [*measured_notes(rows, points), _published_note()]
        arrange(figure, style, title=title, notes=notes)
        return save(figure, "chunked_prefill", folder, points, jobs_of(rows, jobs))


def _published_note() -> str:
    gains = published("sarathi")["capacity_gain"]
    return (
        "Sarathi-Serve (OSDI 2024), capacity under a bound on the time between tokens: "
        + ", ".join(f"{gain:g} times vLLM's ({where})" for where, gain in gains.items())
    )


def _label(bar: pd.Series) -> str:
    if bar["schedule"] == "mixed_chunked":
        return f"chunked, budget {bar['token_budget']}"
    return {"mixed_unchunked": "whole prompts,\nbeside decodes", "prefill_first": "prefill first",
            "static": "static batches"}.get(bar["schedule"], bar["schedule"])  # fmt: skip

"""Where the pool goes with long contexts, with full attention and with a sliding window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.checks import SHARES
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import PALETTE, unbound_mark, unbound_notes
from experiments.plotting import (
    class_handles,
    jobs_of,
    means,
    preferred,
    save,
    short_label,
    stack_classes,
)
from harness.runs.jobs import Job

KEYS = ("model", "strategy")

LEFT_OVER = ("withheld_share", "cached_share", "stranded_share", "refused_share", "free_share")
"""Classes of slots that no live sequence maps."""

COUNTS = (
    ("batched_requests", "requests running\nat once"),
    ("mapped_per_request", "mapped tokens\nper running request"),
    ("dead_per_request", "of these, tokens no layer\nreads again"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`long_context_classes`: the pool by ledger class; `long_context_requests`: what fits."""
    rows = rows[rows["status"] == "complete"]
    if rows.empty:
        return []
    chosen = preferred(rows, simulated=True)
    mapped = (1 - chosen[list(LEFT_OVER)].sum(axis=1)) * chosen["pool_tokens"]
    running = chosen["batched_requests"]
    chosen = chosen.assign(
        mapped_per_request=mapped / running,
        dead_per_request=chosen["dead_window_share"] * chosen["pool_tokens"] / running,
    )
    points = means(chosen, KEYS, [*SHARES, "saturated_share", *(metric for metric, _ in COUNTS)])
    with style.context():
        its_jobs = jobs_of(chosen, jobs)
        return [
            *save(_draw_classes(points, style), "long_context_classes", folder, points, its_jobs),
            *save(_draw_counts(points, style), "long_context_requests", folder, points, its_jobs),
        ]


def _draw_classes(points: pd.DataFrame, style: FigureStyle) -> Figure:
    models = list(dict.fromkeys(points["model"]))
    widest = max((points["model"] == model).sum() for model in models)
    panel = PanelSize(0.7 + 0.8 * widest, 3.4)
    figure, grid = subplots(
        style, 1, len(models), panel, sharey=True, narrowest=0.6 + 0.24 * widest
    )
    for axes, model in zip(grid[0], models, strict=True):
        bars = points[points["model"] == model]
        stack_classes(axes, range(len(bars)), bars)
        labels = [
            short_label(name) + unbound_mark(saturated)
            for name, saturated in zip(bars["strategy"], bars["saturated_share"], strict=True)
        ]
        axes.set_xticks(range(len(bars)), labels)
        axes.set_title(model)
        axes.set_ylabel("share of the pool, %")
    notes = unbound_notes(points["saturated_share"])
    arrange(figure, style, handles=class_handles(points), notes=notes, beside=True)
    return figure


def _draw_counts(points: pd.DataFrame, style: FigureStyle) -> Figure:
    models = list(dict.fromkeys(points["model"]))
    strategies = list(dict.fromkeys(points["strategy"]))
    figure, grid = subplots(style, 1, len(COUNTS), PanelSize(3.7, 3.0), narrowest=2.2)
    width = 0.8 / len(models)
    for axes, (metric, label) in zip(grid[0], COUNTS, strict=True):
        for index, model in enumerate(models):
            bars = points[points["model"] == model].set_index("strategy").reindex(strategies)
            at = np.arange(len(strategies)) + (index - (len(models) - 1) / 2) * width
            axes.bar(
                at, bars[metric], width, yerr=bars[f"{metric}_ci"].fillna(0), capsize=2,
                color=PALETTE[index], label=model, zorder=2, error_kw={"linewidth": 0.8},
            )  # fmt: skip
            _mark_unbound(axes, at, bars, metric)
        axes.set_xticks(range(len(strategies)), [short_label(s) for s in strategies])
        axes.tick_params(axis="x", labelsize=note_size())
        axes.set_ylabel(label)
    handles = grid[0][0].get_legend_handles_labels()[0]
    arrange(figure, style, handles=handles, notes=unbound_notes(points["saturated_share"]))
    return figure


def _mark_unbound(axes: Axes, at: Iterable[float], bars: pd.DataFrame, metric: str) -> None:
    """A dagger over each bar of a run whose memory was not scarce; `bars` has none where NaN."""
    heights = bars[metric] + bars[f"{metric}_ci"].fillna(0)
    for x, height, saturated in zip(at, heights, bars["saturated_share"], strict=True):
        if height == height and (mark := unbound_mark(saturated)):
            axes.annotate(
                mark, (x, height), xytext=(0, 1.5), textcoords="offset points", ha="center",
                va="bottom", fontsize=note_size(),
            )  # fmt: skip

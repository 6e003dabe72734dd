"""Where the pool goes with long contexts, with full attention and with a sliding window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.checks import SHARES
from experiments.line_panels import PALETTE, explain_unbound, unbound_mark
from experiments.plotting import (
    class_handles,
    jobs_of,
    means,
    preferred,
    save,
    short_label,
    stack_classes,
    style,
)
from harness.runs.jobs import Job

KEYS = ("model", "strategy")

LEFT_OVER = ("withheld_share", "cached_share", "stranded_share", "free_share")
"""Classes of slots that no live sequence maps."""

COUNTS = (
    ("batched_requests", "requests running\nat once"),
    ("mapped_per_request", "mapped tokens\nper running request"),
    ("dead_per_request", "of these, tokens no layer\nreads again"),
)


def draw(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
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
    with style():
        its_jobs = jobs_of(chosen, jobs)
        return [
            *save(_draw_classes(points), "long_context_classes", folder, points, its_jobs),
            *save(_draw_counts(points), "long_context_requests", folder, points, its_jobs),
        ]


def _draw_classes(points: pd.DataFrame) -> plt.Figure:
    models = list(dict.fromkeys(points["model"]))
    widest = max((points["model"] == model).sum() for model in models)
    figure, grid = plt.subplots(
        1, len(models), squeeze=False, sharey=True,
        figsize=(1.4 + 0.8 * widest * len(models), 3.6),
    )  # fmt: skip
    for axes, model in zip(grid[0], models, strict=True):
        bars = points[points["model"] == model]
        stack_classes(axes, range(len(bars)), bars)
        labels = [
            short_label(name) + unbound_mark(saturated)
            for name, saturated in zip(bars["strategy"], bars["saturated_share"], strict=True)
        ]
        axes.set_xticks(range(len(bars)), labels)
        axes.set_title(model)
    grid[0][0].set_ylabel("share of the pool, %")
    explain_unbound(figure, points["saturated_share"])
    figure.legend(handles=class_handles(points), loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def _draw_counts(points: pd.DataFrame) -> plt.Figure:
    models = list(dict.fromkeys(points["model"]))
    strategies = list(dict.fromkeys(points["strategy"]))
    figure, grid = plt.subplots(1, len(COUNTS), figsize=(3.7 * len(COUNTS), 3.4))
    width = 0.8 / len(models)
    for axes, (metric, label) in zip(grid, COUNTS, strict=True):
        for index, model in enumerate(models):
            bars = points[points["model"] == model].set_index("strategy").reindex(strategies)
            at = np.arange(len(strategies)) + (index - (len(models) - 1) / 2) * width
            axes.bar(
                at, bars[metric], width, yerr=bars[f"{metric}_ci"].fillna(0), capsize=2,
                color=PALETTE[index], label=model, zorder=2, error_kw={"linewidth": 0.8},
            )  # fmt: skip
            _mark_unbound(axes, at, bars, metric)
        axes.set_xticks(range(len(strategies)), [short_label(s) for s in strategies], fontsize=6.5)
        axes.set_ylabel(label)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    explain_unbound(figure, points["saturated_share"])
    figure.legend(handles, labels, loc="upper center", ncol=len(models), bbox_to_anchor=(0.5, 0.0))
    return figure


def _mark_unbound(axes: Axes, at: Iterable[float], bars: pd.DataFrame, metric: str) -> None:
    """A dagger over each bar of a run whose memory was not scarce; `bars` has none where NaN."""
    heights = bars[metric] + bars[f"{metric}_ci"].fillna(0)
    for x, height, saturated in zip(at, heights, bars["saturated_share"], strict=True):
        if height == height and (mark := unbound_mark(saturated)):
            axes.annotate(
                mark, (x, height), xytext=(0, 1.5), textcoords="offset points", ha="center",
                va="bottom", fontsize=7,
            )  # fmt: skip

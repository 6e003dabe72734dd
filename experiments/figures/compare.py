"""Where the pool goes under each strategy, and the PagedAttention paper's view beside its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.checks import SHARES
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import published
from experiments.paper.bars import PAPER_CLASSES, PaperBars, paper_class_handles
from experiments.plotting import (
    class_handles,
    jobs_of,
    means,
    of_first_part,
    preferred,
    save,
    short_label,
    stack_classes,
)
from harness.runs.jobs import Job

KEYS = ("workload", "strategy", "allocator", "fit", "expected", "page_size")


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`compare_classes`, and `compare_fig2` for ShareGPT lengths."""
    chosen = of_first_part(preferred(rows, simulated=True))
    with style.context():
        paths = _draw_classes(chosen, jobs_of(chosen, jobs), folder, style)
        sharegpt = chosen[(chosen["workload"] == "sharegpt") & (chosen["fit"] != "first_fit")]
        if len(sharegpt):
            paths += _draw_fig2(sharegpt, jobs_of(sharegpt, jobs), folder, style)
    return paths


def _draw_classes(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    points = means(rows, KEYS, [*SHARES, "batched_requests"])
    workloads = list(dict.fromkeys(points["workload"]))
    widest = max(len(points[points["workload"] == workload]) for workload in workloads)
    panel = PanelSize(1.2 + 0.85 * widest, 3.1)
    figure, grid = subplots(style, len(workloads), 1, panel, sharex=_are_alike(points))
    for axes, workload in zip(grid[:, 0], workloads, strict=True):
        bars = points[points["workload"] == workload]
        stack_classes(axes, range(len(bars)), bars)
        axes.set_xticks(range(len(bars)), [short_label(name) for name in bars["strategy"]])
        axes.set_ylabel("share of the pool, %")
        axes.set_title(f"{workload} (on the bars: batched requests)")
        for x, batched in enumerate(bars["batched_requests"]):
            axes.annotate(
                f"{batched:.1f}", (x, 100), ha="center", va="bottom", fontsize=note_size()
            )
    arrange(figure, style, handles=class_handles(points), beside=True)
    return save(figure, "compare_classes", folder, points, jobs)


def _are_alike(points: pd.DataFrame) -> bool:
    """Every workload has the same strategies."""
    return points.groupby("workload")["strategy"].agg(tuple).nunique() == 1


def _draw_fig2(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle
) -> list[Path]:
    theirs = pd.DataFrame(published("pagedattention")["fig2_memory_percent"]).T
    found = rows.assign(rung=rows["expected"].where(rows["allocator"] == "contiguous", "paged"))
    found = found[found["allocator"].isin(["contiguous", "paged"])]
    if found.empty:
        return []
    shares = [f"paper_{name}_share" for name in PAPER_CLASSES]
    ours = means(found, ["rung"], shares).set_index("rung")[shares]
    ours = 100 * ours.set_axis(list(PAPER_CLASSES), axis="columns")
    rungs = [rung for rung in theirs.index if rung in ours.index]
    names = {"max": "contiguous\nmax", "pow2": "contiguous\npow2", "oracle": "contiguous\noracle"}
    beside = [(0.2, "here", ours.loc[rungs]), (-0.2, "paper", theirs.loc[rungs])]
    bars = PaperBars(style, [names.get(rung, rung) for rung in rungs])
    figure, axes = bars.subplots(PanelSize(5.6, 3.2))
    for offset, source, values in beside:
        bars.stack(axes, np.arange(len(rungs)) + offset, values, source)
    bars.label(axes, "KV memory under overload, %")
    title = "Memory by the PagedAttention paper's classes: its Fig. 2, and here"
    arrange(figure, style, title=title, handles=paper_class_handles(), beside=True)
    points = pd.concat(
        [
            frame.loc[rungs].assign(source=name)
            for name, frame in (("paper", theirs), ("here", ours))
        ]
    )
    return save(figure, "compare_fig2", folder, points.reset_index(names="strategy"), jobs)

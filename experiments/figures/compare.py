"""Where the pool goes under each strategy, and the PagedAttention paper's view beside its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments.checks import SHARES
from experiments.line_panels import published
from experiments.paper.bars import PAPER_CLASSES, paper_class_handles, stack_paper
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

KEYS = ("workload", "strategy", "allocator", "fit", "expected", "page_size")


def draw(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """`compare_classes`, and `compare_fig2` for ShareGPT lengths."""
    chosen = preferred(rows, simulated=True)
    with style():
        paths = _draw_classes(chosen, jobs_of(chosen, jobs), folder)
        sharegpt = chosen[(chosen["workload"] == "sharegpt") & (chosen["fit"] != "first_fit")]
        if len(sharegpt):
            paths += _draw_fig2(sharegpt, jobs_of(sharegpt, jobs), folder)
    return paths


def _draw_classes(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    points = means(rows, KEYS, [*SHARES, "batched_requests"])
    workloads = list(dict.fromkeys(points["workload"]))
    widest = max(len(points[points["workload"] == workload]) for workload in workloads)
    figure, grid = plt.subplots(
        len(workloads), 1, squeeze=False, figsize=(1.2 + 0.85 * widest, 3.1 * len(workloads))
    )
    for axes, workload in zip(grid[:, 0], workloads, strict=True):
        bars = points[points["workload"] == workload]
        stack_classes(axes, range(len(bars)), bars)
        axes.set_xticks(range(len(bars)), [short_label(name) for name in bars["strategy"]])
        axes.set_ylabel("share of the pool, %")
        axes.set_title(f"{workload} (on the bars: batched requests)", pad=16)
        for x, batched in enumerate(bars["batched_requests"]):
            axes.annotate(f"{batched:.1f}", (x, 100), ha="center", va="bottom", fontsize=8)
    figure.legend(handles=class_handles(points), loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return save(figure, "compare_classes", folder, points, jobs)


def _draw_fig2(rows: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    theirs = pd.DataFrame(published("pagedattention")["fig2_memory_percent"]).T
    found = rows.assign(rung=rows["expected"].where(rows["allocator"] == "contiguous", "paged"))
    found = found[found["allocator"].isin(["contiguous", "paged"])]
    shares = [f"paper_{name}_share" for name in PAPER_CLASSES]
    ours = means(found, ["rung"], shares).set_index("rung")[shares]
    ours = 100 * ours.set_axis(list(PAPER_CLASSES), axis="columns")
    rungs = [rung for rung in theirs.index if rung in ours.index]
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    for offset, source, values in ((-0.2, "paper", theirs), (0.2, "here", ours)):
        stack_paper(axes, np.arange(len(rungs)) + offset, values.loc[rungs], source)
    names = {"max": "contiguous\nmax", "pow2": "contiguous\npow2", "oracle": "contiguous\noracle"}
    axes.set_xticks(range(len(rungs)), [names.get(rung, rung) for rung in rungs])
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set_ylabel("KV memory under overload, %")
    axes.set_ylim(0, 100)
    axes.legend(handles=paper_class_handles(), loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title("Memory by the PagedAttention paper's classes: its Fig. 2, and here")
    points = pd.concat(
        [
            frame.loc[rungs].assign(source=name)
            for name, frame in (("paper", theirs), ("here", ours))
        ]
    )
    return save(figure, "compare_fig2", folder, points.reset_index(names="strategy"), jobs)

"""Pictures of a GPU's kernels: bandwidth over context by page and peer, time over page size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure_style import DEFAULT
from experiments.gpu.rows import Row, refuse_dry
from experiments.line_panels import published
from experiments.plotting import write_pictures, write_points

LOOKS = {
    ("paged", 16): ("ours, pages of 16", "#0072B2", "o", "-"),
    ("paged", 1): ("ours, pages of 1", "#56B4E9", "s", "-"),
    ("contiguous", 0): ("ours, no table", "#000000", None, ":"),
    ("flash_attention_3", 16): ("FlashAttention-3, pages of 16", "#D55E00", "^", "--"),
    ("flash_attention_3", 1): ("FlashAttention-3, pages of 1", "#E69F00", "v", "--"),
    ("flashinfer", 16): ("FlashInfer, pages of 16", "#009E73", "D", "--"),
    ("flashinfer", 1): ("FlashInfer, pages of 1", "#CC79A7", "P", "--"),
    ("sdpa", 0): ("torch SDPA, contiguous", "#777777", "x", "-."),
}
"""By contender and page size: label, colour, marker, line."""


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """bandwidth and page_size as .png, .pdf and .csv, as far as there are rows for them.

    Raises DryRowsError for rows of a dry run.
    """
    refuse_dry(rows)
    folder.mkdir(parents=True, exist_ok=True)
    measured = pd.DataFrame([row for row in rows if row["status"] == "ok"])
    paths: list[Path] = []
    for name, bench, make in (
        ("gpu_bandwidth", "decode", _bandwidth),
        ("gpu_page_size", "pages", _page_size),
    ):
        points = measured[measured["bench"] == bench] if len(measured) else measured
        if len(points):
            with DEFAULT.context():
                paths += _save(make(points), points, folder / name)
    return paths


def _bandwidth(points: pd.DataFrame) -> Figure:
    """A panel a batch size: share of the read bandwidth over the context's length."""
    batches = sorted(points["batch"].unique())
    figure, grid = plt.subplots(
        1, len(batches), figsize=(2.0 * len(batches) + 0.6, 2.9), sharey=True, squeeze=False
    )
    contexts = sorted(points["context"].unique())
    for axes, batch in zip(grid[0], batches, strict=True):
        for (contender, page), look in LOOKS.items():
            chosen = points[
                (points["batch"] == batch)
                & (points["contender"] == contender)
                & (points["page_size"] == page)
            ].sort_values("context")
            if len(chosen):
                label, colour, marker, line = look
                axes.plot(
                    chosen["context"], 100 * chosen["read_share"],
                    color=colour, marker=marker, linestyle=line, label=label,
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [_short(context) for context in contexts])
        axes.minorticks_off()
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("context, tokens")
        axes.set_ylim(0, 105)
    grid[0][0].set_ylabel("% of the measured\nread bandwidth")
    handles: dict[str, Artist] = {}
    for axes in grid[0]:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.02),
        ncols=min(4, len(handles)), fontsize=7,
    )  # fmt: skip
    figure.tight_layout()
    return figure


def _page_size(points: pd.DataFrame) -> Figure:
    """Time beside the same kernel without a table, over the page size."""
    figure, axes = plt.subplots(figsize=(4.6, 2.8))
    paged = points[points["contender"] == "paged"].sort_values("page_size")
    without = points[points["contender"] == "contiguous"]["median_us"]
    shape = f"{points['batch'].iloc[0]} sequences of {points['context'].iloc[0]:,} tokens"
    if len(without):
        more = 100 * (paged["median_us"] / without.iloc[0] - 1)
        axes.plot(paged["page_size"], more, color="#0072B2", marker="o", label=shape)
        low, high = published("pagedattention")["fig18a_kernel_overhead_percent"]
        axes.axhspan(
            low,
            high,
            color="#E69F00",
            alpha=0.25,
            linewidth=0,
            label="the paper's, beside FasterTransformer",
        )
        axes.axhline(0, color="#000000", linestyle=":", linewidth=1)
        axes.set_ylabel("time beside the same kernel\nwithout a table, % more")
        _room_for_legend(axes, max(high, float(more.max())), min(0.0, float(more.min())))
    else:
        axes.plot(paged["page_size"], paged["median_us"], color="#0072B2", marker="o", label=shape)
        axes.set_ylabel("time, µs")
    axes.set_xscale("log", base=2)
    axes.set_xticks(paged["page_size"], [str(size) for size in paged["page_size"]])
    axes.minorticks_off()
    axes.set_xlabel("page size, tokens")
    axes.legend(loc="upper right", fontsize=7)
    figure.tight_layout()
    return figure


def _room_for_legend(axes: Axes, highest: float, lowest: float) -> None:
    axes.set_ylim(lowest - 2, highest + 0.35 * (highest - lowest) + 2)


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _save(figure: Figure, points: pd.DataFrame, path: Path) -> list[Path]:
    csv = path.with_suffix(".csv")
    write_points(points.dropna(axis="columns", how="all"), csv)
    return [*write_pictures(figure, [path.with_suffix(end) for end in (".pdf", ".png")]), csv]

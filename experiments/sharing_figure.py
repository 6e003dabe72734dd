"""Pages saved by the sequences of a request, and what that buys: ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import memory_note, published, unbound_mark, unbound_notes
from experiments.plotting import (
    EXPECTED_COLOURS,
    MARKERS,
    STRATEGY_COLOURS,
    jobs_of,
    line_width,
    means,
    save,
    thin_line,
)
from harness.runs.jobs import Job

PAPER_COLOUR = "#BBBBBB"
PAPER_LABEL = "PagedAttention paper"
SHARING = ("paged_cow", "paged_prefix")
METRICS = (
    "sharing_saved",
    "tokens_per_step",
    "output_tokens_per_s",
    "batched_requests",
    "utilisation",
    "saturated_share",
    "preemptions",
)


class Decoding(NamedTuple):
    """setting: the column that counts sequences. published: the paper's word, in its Fig. 15.
    label: of the axis.
    """

    setting: str
    published: str
    label: str


def draw(
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    folder: Path,
    decoding: Decoding,
    name: str,
    style: FigureStyle = DEFAULT,
) -> list[Path]:
    """`NAME_saved` and, where several strategies were simulated, `NAME_throughput`."""
    rows = rows[rows["status"] == "complete"]
    if rows.empty:
        return []
    rows = rows.assign(
        tokens_per_step=rows["output_tokens"] / rows["num_steps"],
        source=np.where(rows["executor"] == "simulated", "simulated", "timed, " + rows["model"]),
    )
    keys = ("workload", "source", "strategy", "allocator", "expected", decoding.setting)
    points = means(rows, keys, METRICS)
    with style.context():
        paths = _draw_saved(points, rows, jobs, folder, decoding, name, style)
        simulated = points[points["source"] == "simulated"]
        of_kind = rows[rows["source"] == "simulated"]
        paths += _draw_throughput(simulated, of_kind, jobs, folder, decoding, name, style)
    return paths


def _draw_saved(
    points: pd.DataFrame, rows: pd.DataFrame, jobs: Sequence[Job], folder: Path,
    decoding: Decoding, name: str, style: FigureStyle,
) -> list[Path]:  # fmt: skip
    theirs: Mapping[str, Any] = published("pagedattention")["fig15_saved_percent"][
        decoding.published
    ]
    shared = points[points["allocator"].isin(SHARING) & (points[decoding.setting] > 1)]
    workloads = list(dict.fromkeys(shared["workload"]))
    if not workloads:
        return []
    figure, grid = subplots(
        style, 1, len(workloads), PanelSize(4.0, 2.9), sharey=True, narrowest=2.6
    )
    for axes, workload in zip(grid[0], workloads, strict=True):
        of_workload = shared[shared["workload"] == workload]
        _saved_bars(axes, of_workload, theirs.get(workload, {}), decoding)
        axes.set_title(workload)
        axes.set_ylabel("pages saved by sharing, %")
    grid[0][0].set_ylim(0, 100 if 100 * shared["sharing_saved"].max() > 45 else None)
    handles: list[Patch | Line2D] = [Patch(facecolor=PAPER_COLOUR, label=PAPER_LABEL)]
    handles += [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
        for label, (colour, hatch) in _bar_looks(shared).items()
    ]
    notes = unbound_notes(shared["saturated_share"])
    arrange(figure, style, handles=handles, notes=notes, beside=True)
    paper = pd.DataFrame(
        [
            {"workload": workload, "source": "paper", decoding.setting: count,
             "sharing_saved": percent / 100}
            for workload in workloads
            for count, percent in theirs.get(workload, {}).items()
        ]
    )  # fmt: skip
    plotted = pd.concat([shared, paper], ignore_index=True)
    return save(figure, f"{name}_saved", folder, plotted, jobs_of(rows, jobs))


def _bar_looks(points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and hatch of each strategy and way of running it."""
    pairs = points[["allocator", "source"]].drop_duplicates().itertuples(index=False)
    return {
        f"{allocator}, {source}": (
            STRATEGY_COLOURS[str(allocator)],
            "" if source == "simulated" else "////",
        )
        for allocator, source in pairs
    }


def _saved_bars(
    axes: Axes, points: pd.DataFrame, theirs: Mapping[int, float], decoding: Decoding
) -> None:
    counts = sorted({*points[decoding.setting], *theirs})
    looks = _bar_looks(points)
    width = 0.8 / (len(looks) + bool(theirs))
    place = {count: at for at, count in enumerate(counts)}
    for count, percent in theirs.items():
        _bar(axes, place[count] - 0.4 + width / 2, percent, 0.0, width, PAPER_COLOUR, "")
    for index, (label, (colour, hatch)) in enumerate(looks.items(), start=bool(theirs)):
        of_look = points[points["allocator"] + ", " + points["source"] == label]
        for _, point in of_look.iterrows():
            x = place[point[decoding.setting]] - 0.4 + (index + 0.5) * width
            interval = 100 * np.nan_to_num(point["sharing_saved_ci"])
            height = 100 * point["sharing_saved"]
            mark = unbound_mark(point["saturated_share"])
            _bar(axes, x, height, interval, width, colour, hatch, mark)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(decoding.label)


def _bar(
    axes: Axes, x: float, height: float, interval: float, width: float, colour: str, hatch: str,
    mark: str = "",
) -> None:  # fmt: skip
    axes.bar(
        x, height, 0.94 * width, color=colour, hatch=hatch, edgecolor="white", linewidth=0,
        yerr=interval or None, error_kw={"linewidth": 0.8, "capsize": 1.5}, zorder=2,
    )  # fmt: skip
    axes.annotate(
        f"{height:.1f}{mark}", (x, height + interval),
        xytext=(0, 1.5), textcoords="offset points", ha="center", va="bottom", fontsize=note_size(),
    )  # fmt: skip


def _draw_throughput(
    points: pd.DataFrame, rows: pd.DataFrame, jobs: Sequence[Job], folder: Path,
    decoding: Decoding, name: str, style: FigureStyle,
) -> list[Path]:  # fmt: skip
    several = points.groupby("workload")["strategy"].transform("nunique") > 1
    points = points[several]
    workloads = list(dict.fromkeys(points["workload"]))
    if not workloads:
        return []
    rows = rows[rows["workload"].isin(workloads)]
    figure, grid = subplots(style, 2, len(workloads), PanelSize(3.8, 2.2), sharex=True)
    for column, workload in enumerate(workloads):
        for _, line in points[points["workload"] == workload].groupby("strategy", sort=False):
            for row, metric in enumerate(("tokens_per_step", "batched_requests")):
                _line(grid[row][column], line.sort_values(decoding.setting), decoding, metric)
        grid[0][column].set_title(workload)
        grid[0][column].set_ylabel("output tokens/step")
        grid[1][column].set_ylabel("batched requests")
        grid[1][column].set_xticks(sorted(points[decoding.setting].unique()))
    for axes in grid.flat:
        axes.set_xlabel(decoding.label)
        axes.set_ylim(bottom=0)
    unique = points.drop_duplicates("strategy")
    handles = [
        Line2D([], [], label=row["strategy"], **_line_look(row)) for _, row in unique.iterrows()
    ]
    title = f"simulated; {memory_note(rows)}"
    arrange(figure, style, title=title, handles=handles, beside=True)
    return save(figure, f"{name}_throughput", folder, points, jobs_of(rows, jobs))


def _line(axes: Axes, line: pd.DataFrame, decoding: Decoding, metric: str) -> None:
    axes.errorbar(
        line[decoding.setting], line[metric], yerr=line[f"{metric}_ci"].fillna(0), capsize=2,
        **_line_look(line.iloc[0]),
    )  # fmt: skip


def _line_look(point: pd.Series) -> dict[str, Any]:
    allocator = point["allocator"]
    if allocator == "contiguous":
        colour = EXPECTED_COLOURS.get(point["expected"], "#999999")
        return {
            "color": colour,
            "linestyle": "--",
            "marker": "D",
            "linewidth": thin_line(),
        }
    return {
        "color": STRATEGY_COLOURS.get(allocator),
        "marker": MARKERS.get(allocator, "D"),
        "linewidth": line_width(allocator),
    }

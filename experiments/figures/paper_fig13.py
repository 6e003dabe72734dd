"""Requests that run at once (PagedAttention, Fig. 13)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.figures import paper_fig2
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.paper.systems import SYSTEMS, in_order, with_systems
from experiments.plotting import jobs_of, means, save
from experiments.sharing_figure import PAPER_COLOUR, PAPER_LABEL
from experiments.windows import Window, with_window
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

WINDOWS = {
    ("sharegpt", "2"): Window(150.0, 300.0),
    ("sharegpt", "1.5"): Window(150.0, 300.0),
    ("alpaca_like", "30"): Window(15.0, 45.0),
    ("alpaca_like", "250"): Window(5.0, 12.0),
}
"""By workload and requests/s."""

OVERLOAD = "4"
"""Requests/s of Fig. 2, whose runs are this figure's third load."""

LOADS = {
    "sharegpt": {
        "2": "2 requests/s (caption)",
        "1.5": "1.5 requests/s (script)",
        OVERLOAD: "4 requests/s (all full)",
    },
    "alpaca_like": {"30": "30 requests/s (caption)", "250": "250 requests/s (all full)"},
}

FULL = 0.9
"""Share of the window in which requests wait, from which on a system is taken to be full."""

ROOM_IN = 0.4
"""For a system's bars, at least."""

HATCHES = ("", "////", "....")


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig13`: a panel a workload, bars by system and load."""
    points = batched(rows, jobs)
    if points.empty:
        return []
    workloads = [name for name in LOADS if name in set(points["workload"])]
    with style.context():
        widths = [points[points["workload"] == name]["system"].nunique() for name in workloads]
        panel = PanelSize((1.0 + 0.95 * sum(widths)) / len(workloads), 3.2)
        figure, grid = subplots(
            style, 1, len(workloads), panel, narrowest=ROOM_IN * max(widths), width_ratios=widths
        )
        for axes, workload in zip(grid[0], workloads, strict=True):
            _draw_panel(axes, points[points["workload"] == workload], workload)
            axes.set_ylabel("batched requests")
        arrange(figure, style)
        chosen = rows[rows["part"].isin(["fig2", "fig13"])]
        return save(figure, "paper_fig13", folder, points, jobs_of(chosen, jobs))


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """Batched requests of each system at each load."""
    points = batched(rows, jobs)
    theirs = published_numbers()["fig13_batched_requests"]
    found = []
    for _, point in points.iterrows():
        workload, look = point["workload"], SYSTEMS[point["system"]]
        value = theirs[workload].get(look.published)
        if value is None:
            continue
        load = LOADS[workload].get(point["load"], f"{point['load']} requests/s")
        found.append(
            Quantity(
                "13", f"{workload}, {load}: {look.label}", "requests", value,
                Interval(point["batched"], point["batched_ci"], int(point["repetitions"])),
                _reason(point),
            )
        )  # fmt: skip
    return found


def _reason(point: pd.Series) -> str:
    """Batched requests are a matter of memory only where it is full."""
    synthetic = reason("alpaca_lengths") if point["workload"] == "alpaca_like" else ""
    not_full = "" if point["queued"] >= FULL else reason("not_full")
    return "; and ".join(filter(None, (synthetic, not_full)))


def batched(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Mean batched requests within the window: a line a workload, load and system. `queued` is
    the share of that time in which others wait."""
    parts = []
    own = rows[rows["part"] == "fig13"]
    if len(own):
        own = with_systems(own, jobs)
        own = own.assign(load=[f"{rate:g}" for rate in own["rate"]])
        for place, group in own.groupby(["workload", "load"], sort=False):
            if place not in WINDOWS:
                continue
            found = with_window(group, jobs, WINDOWS[place]).rename(
                columns={"window_batched": "batched", "window_queued": "queued"}
            )
            parts.append(means(found, ["workload", "load", "system"], ["batched", "queued"]))
        overload = paper_fig2.shares(rows, jobs)
        if len(overload):
            columns = ["system", "batched", "batched_ci", "queued", "queued_ci", "repetitions"]
            parts.append(overload[columns].assign(workload="sharegpt", load=OVERLOAD))
    if not parts:
        return pd.DataFrame(columns=["workload", "load", "system"])
    points = pd.concat(parts, ignore_index=True)
    loads = [(workload, load) for workload in LOADS for load in LOADS[workload]]
    ranks = {place: rank for rank, place in enumerate(itertools.product(loads, SYSTEMS))}
    places = zip(
        zip(points["workload"], points["load"], strict=True), points["system"], strict=True
    )
    order = pd.Series([ranks.get(place, len(ranks)) for place in places], index=points.index)
    return points.loc[order.sort_values(kind="stable").index]


def _draw_panel(axes: Axes, points: pd.DataFrame, workload: str) -> None:
    theirs = published_numbers()["fig13_batched_requests"][workload]
    loads = [load for load in LOADS[workload] if load in set(points["load"])]
    systems = in_order(points["system"])
    width = 0.84 / (len(loads) + 1)
    for place, system in enumerate(systems):
        look = SYSTEMS[system]
        bars: list[tuple[float, float, str, str]] = []
        if look.published in theirs:
            bars.append((theirs[look.published], 0.0, PAPER_COLOUR, ""))
        for load, hatch in zip(loads, HATCHES, strict=False):
            found = points[(points["system"] == system) & (points["load"] == load)]
            if len(found):
                point = found.iloc[0]
                bars.append(
                    (point["batched"], np.nan_to_num(point["batched_ci"]), look.colour, hatch)
                )
        start = place - width * (len(bars) - 1) / 2
        for index, (height, interval, colour, hatch) in enumerate(bars):
            x = start + index * width
            axes.bar(
                x, height, 0.94 * width, yerr=interval or None, color=colour, hatch=hatch,
                edgecolor="white", linewidth=0, error_kw={"linewidth": 0.8, "capsize": 1.5},
                zorder=2,
            )  # fmt: skip
            axes.annotate(
                f"{height:.1f}", (x, height + interval), xytext=(0, 1.5), ha="center",
                textcoords="offset points", va="bottom", fontsize=note_size(),
            )  # fmt: skip
    labels = [SYSTEMS[s].label.replace(" (", "\n(").replace(", ", ",\n") for s in systems]
    axes.set_xticks(range(len(systems)), labels)
    axes.tick_params(axis="x", length=0, labelsize=note_size())
    axes.set_title(f"Fig. 13: OPT-13B, {workload}")
    handles = [Patch(facecolor=PAPER_COLOUR, label=PAPER_LABEL)]
    handles += [
        Patch(facecolor="#888888", hatch=hatch, edgecolor="white", linewidth=0,
              label=f"here, {LOADS[workload][load]}")
        for load, hatch in zip(loads, HATCHES, strict=False)
    ]  # fmt: skip
    axes.legend(handles=handles, loc="upper left", fontsize=note_size())

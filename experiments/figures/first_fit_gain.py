"""What paging gains over contiguous strategies, whatever they are told and wherever they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.text import Text

from experiments.capacity_figure import drawn_memory_note
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import from_zero
from experiments.paired import (
    PLACEMENT_COLOURS,
    PLACEMENT_LABELS,
    PLACEMENTS,
    against,
    best_at,
    doubts,
    in_words,
    paired_ratio,
    slo_in_words,
    with_placement,
)
from experiments.plotting import (
    EXPECTED_COLOURS,
    FIT_DASHES,
    jobs_of,
    line_width,
    means,
    save,
    thin_line,
)
from harness.runs.jobs import Job

ESTIMATES = ("max", "pow2", "oracle")
RATIOS = (
    ("output_tokens_per_s_ratio", "paged / contiguous,\noutput tokens/s"),
    ("batched_requests_ratio", "paged / contiguous,\nbatched requests"),
)
GOODPUT = "goodput_requests_per_s"


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`first_fit_gain`: capacities of paged over contiguous strategies, goodput over the rate."""
    rows = with_placement(rows[rows["status"] == "complete"])
    gains, goodput = _gains(rows), _goodput(rows)
    if gains.empty and goodput.empty:
        return []
    with style.context():
        figure, (grid,) = subplots(
            style, 1, 3, PanelSize(3.7, 2.9), narrowest=2.2, width_ratios=(1, 1, 1.4)
        )
        for axes, (metric, label) in zip(grid, RATIOS, strict=False):
            _bars(axes, gains, metric, label)
        _lines(grid[2], goodput, slo_in_words(jobs_of(rows, jobs)))
        from_zero(list(grid))
        arrange(figure, style, title=_title(rows), handles=_handles(gains, goodput))
        points = pd.concat([gains.assign(panel="ratio"), goodput.assign(panel="goodput")])
        return save(figure, "first_fit_gain", folder, points, jobs_of(rows, jobs))


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Text | None:
    """The findings, a line each; None where these rows hold none."""
    lines = findings(rows, jobs)
    return Text("\n".join(lines)) if lines else None


def findings(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """What paging gains over the best-informed contiguous strategy under each fit."""
    rows = with_placement(rows[rows["status"] == "complete"])
    return [line for line in (_capacity_line(rows), _goodput_line(rows)) if line]


def _capacity_line(rows: pd.DataFrame) -> str:
    capacity = rows[rows["part"] == "capacity"]
    paged = capacity[capacity["placement"] == "paged"]
    told = capacity[capacity["expected"] == "oracle"]
    ratios = {
        fit: paired_ratio(paged, own, "output_tokens_per_s")
        for fit in PLACEMENTS[:-1]
        if len(own := told[told["placement"] == fit]) and len(paged)
    }
    if not ratios:
        return ""
    doubt = dict(zip(ratios, doubts(list(ratios.values())), strict=True))
    said = [f"{in_words(ratio)} times {_name(fit)}'s{doubt[fit]}" for fit, ratio in ratios.items()]
    line = (
        "capacity, contiguous strategies told the true length: the tokens/s of paged are "
        + ", ".join(said)
    )
    if {"buddy", "first_fit"} <= set(ratios) and not doubt["buddy"]:
        left = (ratios["first_fit"].mean - 1) / (ratios["buddy"].mean - 1)
        line += f"; {100 * left:.0f} % of the gain over buddy is left over first fit"
    return line


def _goodput_line(rows: pd.DataFrame) -> str:
    rates = rows[rows["part"] == "rates"]
    paged = best_at(rates[rates["placement"] == "paged"], GOODPUT, "rate")
    ratios, means_at_best = {}, {}
    for fit in PLACEMENTS[:-1]:
        own = rates[(rates["placement"] == fit) & (rates["expected"] == "oracle")]
        if len(own) and len(paged):
            best = best_at(own, GOODPUT, "rate")
            ratios[fit] = paired_ratio(paged, best, GOODPUT)
            means_at_best[fit] = best[GOODPUT].mean()
    if not ratios:
        return ""
    said = [
        f"{in_words(ratio)} times {_name(fit)}'s ({means_at_best[fit]:.2f}){doubt}"
        for (fit, ratio), doubt in zip(ratios.items(), doubts(list(ratios.values())), strict=True)
    ]
    return (
        "goodput, each at its best of the rates, contiguous told the true length: paged has "
        f"{paged[GOODPUT].mean():.2f} requests/s, {', '.join(said)}"
    )


def _name(fit: str) -> str:
    return fit.replace("_", " ")


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Paged over each contiguous strategy at capacity: means over seeds."""
    capacity = rows[rows["part"] == "capacity"]
    metrics = ["output_tokens_per_s", "batched_requests"]
    paged = capacity[capacity["placement"] == "paged"].groupby("seed")[metrics].mean()
    contiguous = capacity[capacity["placement"] != "paged"]
    if contiguous.empty or paged.empty:
        return pd.DataFrame()
    theirs = contiguous.join(paged.add_suffix("_paged"), on="seed")
    for metric in metrics:
        theirs[f"{metric}_ratio"] = theirs[f"{metric}_paged"] / theirs[metric]
    return means(theirs, ["placement", "expected"], [metric for metric, _ in RATIOS])


def _goodput(rows: pd.DataFrame) -> pd.DataFrame:
    """Goodput over the rate: means over seeds, and less than paged has of the same requests."""
    rates = rows[rows["part"] == "rates"]
    if rates.empty:
        return pd.DataFrame()
    compared = against(rates, rates["placement"] == "paged", ["rate"], [GOODPUT])
    return means(compared, ["placement", "expected", "rate"], [GOODPUT, f"{GOODPUT}_gain"])


def _bars(axes: Axes, gains: pd.DataFrame, metric: str, label: str) -> None:
    axes.set_ylabel(label)
    if gains.empty:
        axes.set_axis_off()
        return
    estimates = [name for name in ESTIMATES if name in set(gains["expected"])]
    fits = [name for name in PLACEMENTS if name in set(gains["placement"])]
    width = 0.8 / len(fits)
    for index, fit in enumerate(fits):
        own = gains[gains["placement"] == fit].set_index("expected").reindex(estimates)
        x = np.arange(len(estimates)) + (index - (len(fits) - 1) / 2) * width
        interval = own[f"{metric}_ci"].fillna(0)
        axes.bar(
            x, own[metric], width, color=PLACEMENT_COLOURS[fit], yerr=interval,
            error_kw={"linewidth": 0.8, "capsize": 1.5}, zorder=2,
        )  # fmt: skip
        for at, value, above in zip(x, own[metric], interval, strict=True):
            axes.annotate(
                f"{value:.2f}", (at, value + above), xytext=(0, 1.5), textcoords="offset points",
                ha="center", va="bottom", fontsize=note_size(),
            )  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(estimates)), [f"told {name}" for name in estimates])
    axes.tick_params(axis="x", length=0)


def _lines(axes: Axes, goodput: pd.DataFrame, slo: str) -> None:
    if goodput.empty:
        axes.set_axis_off()
        return
    for (placement, expected), line in goodput.groupby(["placement", "expected"], sort=False):
        line = line.sort_values("rate")
        axes.errorbar(
            line["rate"], line[GOODPUT], yerr=line[f"{GOODPUT}_ci"].fillna(0), capsize=2,
            **_look(str(placement), str(expected)),
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("request rate, requests/s")
    axes.set_ylabel(f"goodput, requests/s\n({slo})")


def _look(placement: str, expected: str) -> dict[str, Any]:
    if placement == "paged":
        return {
            "color": PLACEMENT_COLOURS["paged"],
            "linewidth": line_width(otherwise=1.5),
            "marker": "o",
        }
    return {
        "color": EXPECTED_COLOURS.get(expected, "#999999"), "marker": "D", "markersize": 3,
        "linestyle": (0, FIT_DASHES[placement]), "linewidth": thin_line(),
    }  # fmt: skip


def _handles(gains: pd.DataFrame, goodput: pd.DataFrame) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = []
    if len(gains):
        handles += [
            Patch(color=PLACEMENT_COLOURS[fit], label=PLACEMENT_LABELS[fit])
            for fit in PLACEMENTS
            if fit in set(gains["placement"])
        ]
    if len(goodput):
        for placement, expected in goodput[["placement", "expected"]].drop_duplicates().to_numpy():
            shown = "paged" if placement == "paged" else f"{_name(placement)}, {expected}"
            handles.append(Line2D([], [], label=shown, **_look(placement, expected)))
    return handles


def _title(rows: pd.DataFrame) -> str:
    capacity = rows[rows["part"] == "capacity"]
    if capacity.empty:
        return "Goodput of paging and of contiguous strategies (simulated)"
    note = drawn_memory_note(means(capacity, ["placement", "expected"], ["saturated_share"]))
    return f"Paging against contiguous strategies at capacity ({note}), and over rates"

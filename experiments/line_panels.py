"""Lines over one setting, a panel a metric: what most of the experiments' figures are."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.measure.metrics import MEMORY_BOUND_SHARE

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#000000")
"""Okabe and Ito's colours, which the colour-blind tell apart."""

UNBOUND = "†"

SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")


class Panel(NamedTuple):
    """metric: the column drawn. label: with its unit. scale: factor from one to the other."""

    metric: str
    label: str
    scale: float = 1.0


class Look(NamedTuple):
    """How a line is drawn."""

    colour: str
    marker: str
    style: str = "-"


def looks_of(values: Sequence[Any]) -> Mapping[Any, Look]:
    """A look for each value, the same for the same place in order."""
    return {
        value: Look(PALETTE[i % len(PALETTE)], SHAPES[i % len(SHAPES)])
        for i, value in enumerate(dict.fromkeys(values))
    }


def draw_lines(
    axes: Axes, points: pd.DataFrame, x: str, by: str, panel: Panel, looks: Mapping[Any, Look]
) -> None:
    """One line over `x` for each value of `by`, with 95 % intervals where there are any.

    points: as from `experiments.plotting.means`.
    """
    for value, line in points.groupby(by, sort=False):
        line = line.sort_values(x)
        look = looks[value]
        axes.errorbar(
            line[x], panel.scale * line[panel.metric],
            yerr=panel.scale * line[f"{panel.metric}_ci"].fillna(0), color=look.colour,
            marker=look.marker, linestyle=look.style, capsize=2,
        )  # fmt: skip
    axes.set_ylabel(panel.label)


def from_zero(grid: Sequence[Axes]) -> None:
    """Let every axis start at 0: once all is drawn, for it stops shared axes from growing."""
    for axes in grid:
        axes.set_ylim(bottom=0)


def power_ticks(axes: Axes, values: Sequence[float], base: int = 2) -> None:
    """A logarithmic axis that names exactly the values that were run."""
    axes.set_xscale("log", base=base)
    shown = sorted(set(values))
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.minorticks_off()


def line_handles(
    looks: Mapping[Any, Look], labels: Mapping[Any, str] | None = None
) -> list[Line2D]:
    """Legend entries of `looks`."""
    return [
        Line2D(
            [], [], color=look.colour, marker=look.marker, linestyle=look.style,
            label=(labels or {}).get(value, str(value).replace("_", " ")),
        )
        for value, look in looks.items()
    ]  # fmt: skip


def published(paper: str) -> Mapping[str, Any]:
    """The numbers that a paper printed: experiments/published/PAPER.yaml."""
    file = importlib.resources.files("experiments") / "published" / f"{paper}.yaml"
    values: Mapping[str, Any] = yaml.safe_load(file.read_text())
    return values


def unbound_mark(saturated_share: float) -> str:
    """A dagger where memory was scarce for less than half of the time and so decided little."""
    return "" if saturated_share >= MEMORY_BOUND_SHARE else UNBOUND


def unbound_notes(saturated_shares: Iterable[float]) -> list[str]:
    """What `unbound_mark` means, for below a figure, where one of its runs has it."""
    if any(unbound_mark(share) for share in saturated_shares):
        return [f"{UNBOUND} queue waited for memory less than half of the time"]
    return []


def memory_note(rows: pd.DataFrame) -> str:
    """The share of the time that the queue waited for memory, for a caption."""
    low, high = 100 * rows["saturated_share"].min(), 100 * rows["saturated_share"].max()
    shown = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
    verdict = "" if rows["memory_bound"].astype(bool).all() else "; not memory-bound throughout"
    return f"queue waits for memory {shown} % of the time{verdict}"

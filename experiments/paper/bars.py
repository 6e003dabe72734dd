"""Bars of the pool by the four classes of the PagedAttention paper's Fig. 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.figure_layout import PanelSize, subplots
from experiments.figure_style import FigureStyle, note_size
from experiments.plotting import CLASS_COLOURS

PAPER_CLASSES = {
    "token": ("token states", CLASS_COLOURS["token"]),
    "reservation": ("reservation", CLASS_COLOURS["reserved"]),
    "internal": ("internal fragmentation", CLASS_COLOURS["over_reserved"]),
    "external": ("external fragmentation and others", "#BBBBBB"),
}

UPRIGHT_IN = 0.75
"""Inches that two bars side by side take with the numbers in them."""

LYING_IN = 0.36
"""Inches that two take where they lie one over the other."""

WIDTH = 0.36


def paper_class_handles() -> list[Patch]:
    """Legend entries of the classes, and of what the paper does not label."""
    handles = [Patch(facecolor=colour, label=label) for label, colour in PAPER_CLASSES.values()]
    handles.append(
        Patch(facecolor="white", edgecolor="#999999", hatch="////", label="not labelled")
    )
    return handles


class PaperBars:
    """A place for each of `names`, with bars upright, or lying where a style has no room."""

    def __init__(self, style: FigureStyle, names: Sequence[str]) -> None:
        self.style = style
        self.names = names
        width = style.width_in
        self.is_upright = width is None or width >= 0.6 + style.room(UPRIGHT_IN) * len(names)

    def subplots(self, panel: PanelSize) -> tuple[Figure, Axes]:
        """A figure with one axes. panel: of upright bars."""
        if not self.is_upright:
            height = self.style.room(0.5 + LYING_IN * len(self.names))
            panel = PanelSize(panel.width, height, keeps_height=True)
        figure, grid = subplots(self.style, 1, 1, panel)
        return figure, grid[0][0]

    def stack(
        self, axes: Axes, at: np.ndarray[Any, Any], values: pd.DataFrame, source: str
    ) -> None:
        """A bar at each of `at` (0 for the first name) for the rows of `values`: percent of the
        pool, a column a class, NaN where the paper gives none. source: whose numbers they are,
        said at the foot of the bars."""
        foot = np.zeros(len(at))
        for name, (_, colour) in PAPER_CLASSES.items():
            heights = values[name].to_numpy(dtype=float)
            known = np.nan_to_num(heights)
            self._bars(axes, at, known, foot, color=colour)
            self._numbers(axes, at, heights, foot, "white" if name == "token" else "black")
            foot += known
        unknown = np.where(values.isna().any(axis=1), 100 - foot, 0)
        self._bars(
            axes, at, unknown, foot, color="white", edgecolor="#999999", hatch="////", linewidth=0
        )
        for place in at:
            axes.annotate(
                source, (place, 0) if self.is_upright else (0, place), textcoords="offset points",
                xytext=(0, -3) if self.is_upright else (-3, 0), annotation_clip=False,
                ha="center" if self.is_upright else "right",
                va="top" if self.is_upright else "center", fontsize=note_size(),
            )  # fmt: skip

    def label(self, axes: Axes, label: str) -> None:
        """Name the places and the axis of percentages, from 0 to 100."""
        places = range(len(self.names))
        if self.is_upright:
            axes.set_xticks(places, self.names)
            axes.tick_params(axis="x", length=0, pad=1.7 * note_size())
            axes.set_ylabel(label)
            axes.set_ylim(0, 100)
            return
        axes.set_yticks(places, [name.replace("\n", " ") for name in self.names])
        axes.tick_params(axis="y", length=0, pad=3.2 * note_size())
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")

    def _bars(
        self, axes: Axes, at: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any],
        foot: np.ndarray[Any, Any], **look: object,
    ) -> None:  # fmt: skip
        if self.is_upright:
            axes.bar(at, lengths, WIDTH, bottom=foot, zorder=2, **look)  # type: ignore[arg-type]
        else:
            axes.barh(at, lengths, WIDTH, left=foot, zorder=2, **look)  # type: ignore[arg-type]

    def _numbers(
        self, axes: Axes, at: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any],
        foot: np.ndarray[Any, Any], colour: str,
    ) -> None:  # fmt: skip
        """In the bars that are long enough."""
        shortest = 6 if self.is_upright else 12
        for place, length, low in zip(at, lengths, foot, strict=True):
            if length >= shortest:
                middle = low + length / 2
                axes.annotate(
                    f"{length:.1f}", (place, middle) if self.is_upright else (middle, place),
                    ha="center", va="center", fontsize=note_size(), color=colour, zorder=4,
                )  # fmt: skip

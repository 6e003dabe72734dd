"""Bars of the pool by the four classes of the PagedAttention paper's Fig. 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from experiments.plotting import CLASS_COLOURS

PAPER_CLASSES = {
    "token": ("token states", CLASS_COLOURS["token"]),
    "reservation": ("reservation", CLASS_COLOURS["reserved"]),
    "internal": ("internal fragmentation", CLASS_COLOURS["over_reserved"]),
    "external": ("external fragmentation and others", "#BBBBBB"),
}


def paper_class_handles() -> list[Patch]:
    """Legend entries of the classes, and of what the paper does not label."""
    handles = [Patch(facecolor=colour, label=label) for label, colour in PAPER_CLASSES.values()]
    handles.append(
        Patch(facecolor="white", edgecolor="#999999", hatch="////", label="not labelled")
    )
    return handles


def stack_paper(
    axes: Axes, x: np.ndarray[Any, Any], values: pd.DataFrame, source: str, width: float = 0.36
) -> None:
    """A bar at each of `x` for the rows of `values`: percent of the pool, a column a class, NaN
    where the paper gives none. source: whose numbers they are, below the bars."""
    bottom = np.zeros(len(x))
    for name, (_, colour) in PAPER_CLASSES.items():
        heights = values[name].to_numpy(dtype=float)
        known = np.nan_to_num(heights)
        axes.bar(x, known, width, bottom=bottom, color=colour, zorder=2)
        for at, height, low in zip(x, heights, bottom, strict=True):
            if height >= 6:
                dark = name == "token"
                axes.annotate(
                    f"{height:.1f}", (at, low + height / 2), ha="center", va="center",
                    fontsize=7, color="white" if dark else "black", zorder=4,
                )  # fmt: skip
        bottom += known
    unknown = np.where(values.isna().any(axis=1), 100 - bottom, 0)
    axes.bar(
        x, unknown, width, bottom=bottom, color="white", edgecolor="#999999", hatch="////",
        linewidth=0, zorder=2,
    )  # fmt: skip
    for at in x:
        axes.annotate(
            source, (at, 0), xytext=(0, -3), textcoords="offset points", ha="center", va="top",
            fontsize=7, annotation_clip=False,
        )  # fmt: skip

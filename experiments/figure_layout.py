"""Panels, title, legend and notes on a figure of a given width, none over another."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import text_fitting
from experiments.figure_frame import (
    PAD_IN,
    add_legend,
    add_notes,
    add_title,
    extent_in,
    place,
    space_lines,
)
from experiments.figure_style import FigureStyle

Grid = npt.NDArray[Any]
"""Axes by row and column."""

Sharing = bool | Literal["row", "col"]

NARROWEST_PANEL_IN = 1.55
LOWEST_PANEL_IN = 1.3
FLATTEST, STEEPEST = 0.6, 0.65
"""Height over width of a panel in a figure of a given width. A lower one does not shrink with its
width, and only one that is narrow may be steeper."""

HIGHEST_NARROW_IN = 1.6

DIGITS = 5
"""Of a position that are kept: the solver's last ones differ from process to process."""

LOWEST_AXES_IN = 0.85
SMALLEST_AXES_SHARE = 0.55
"""Of a panel's height: more labels than that make the figure higher."""


class PanelSize(NamedTuple):
    """Inches of a panel with its labels where nothing bounds the figure's width. A narrower one
    is less high in proportion, unless it keeps_height."""

    width: float
    height: float
    keeps_height: bool = False


def subplots(
    style: FigureStyle,
    rows: int,
    columns: int,
    panel: PanelSize,
    *,
    sharex: Sharing = False,
    sharey: Sharing = False,
    narrowest: float = NARROWEST_PANEL_IN,
    most: int | None = None,
    width_ratios: Sequence[float] | None = None,
    missing: Collection[tuple[int, int]] = (),
) -> tuple[Figure, Grid]:
    """A figure and its axes, `grid[row][column]`; None in places that are `missing`.

    Where the style's width has no room for `columns` panels of `narrowest` inches in a paper, or
    they are more than `most`, each row goes on below itself; where some are missing, panels
    follow one another without regard to rows. Every panel is given its labels; `arrange`
    leaves out what a neighbour says. Call it and `arrange` within the style's context.
    """
    beside = _panels_beside(style, columns, narrowest, most)
    present = [each for each in np.ndindex(rows, columns) if each not in missing]
    places = _places(present, columns, beside, flows=bool(missing))
    lines = 1 + max(line for line, _ in places)
    width = style.width_in or panel.width * beside
    height = _panel_height(style, panel, width / beside, lines)
    figure = plt.figure(figsize=(width, height * lines), layout="constrained")
    ratios = width_ratios if beside == columns else None
    spec = figure.add_gridspec(lines, beside, width_ratios=ratios)
    grid: Grid = np.full((rows, columns), None, dtype=object)
    for (row, column), where in zip(present, places, strict=True):
        grid[row, column] = figure.add_subplot(
            spec[where],
            sharex=_sharer(grid, row, column, sharex),
            sharey=_sharer(grid, row, column, sharey),
        )
    return figure, grid


def arrange(
    figure: Figure,
    style: FigureStyle,
    *,
    title: str = "",
    handles: Sequence[Artist] = (),
    notes: Sequence[str] = (),
    beside: bool = False,
) -> None:
    """Add what stands around the panels, and mend what does not fit: once all is drawn.

    The title is above, a legend of `handles` and the `notes` are below; the figure grows by
    their heights. beside: the legend is at the right, where the style leaves the width open.
    Labels that neighbours share stand once, long ones are broken, crowded ticks are turned or
    thinned, and so are the numbers on bars.
    """
    _say_once(figure)
    width, panels_height = figure.get_size_inches()
    is_beside = beside and style.width_in is None and len(handles) > 0
    top = add_title(figure, style, title, width) if title else 0.0
    legend = add_legend(figure, style, handles, width, is_beside) if handles else None
    bottom, right = add_notes(figure, style, notes, width), 0.0
    if legend is not None and is_beside:
        right = extent_in(figure, legend)[0] + PAD_IN
        panels_height = max(panels_height, extent_in(figure, legend)[1])
    elif legend is not None:
        bottom += extent_in(figure, legend)[1] + PAD_IN
    place(figure, legend, width, panels_height, (top, bottom, right))
    space_lines(figure, style)
    figure.draw_without_rendering()
    for axes in _shown(figure):
        text_fitting.fit(axes)
    space_lines(figure, style)  # of ticks that are new
    figure.draw_without_rendering()
    for axes in _shown(figure):
        text_fitting.make_headroom(axes)
    missing = round(_missing_height(figure, style, panels_height), DIGITS)
    place(figure, legend, width, panels_height + missing, (top, bottom, right))
    figure.draw_without_rendering()
    _keep_positions(figure)


def fill_line(axes: Axes) -> Axes:
    """The last of the panels, as wide as what is left of its line."""
    spec = axes.get_subplotspec()
    assert spec is not None
    axes.set_subplotspec(spec.get_gridspec()[spec.rowspan.start, spec.colspan.start :])
    return axes


def _panels_beside(style: FigureStyle, columns: int, narrowest: float, most: int | None) -> int:
    """At most so many panels in a line, as evenly filled as may be."""
    room = columns
    if style.width_in is not None:
        room = max(1, int(style.width_in / style.room(narrowest) + 1e-9))
    room = min(room, columns, most or columns)
    return math.ceil(columns / math.ceil(columns / room))


def _places(
    present: Sequence[tuple[int, ...]], columns: int, beside: int, *, flows: bool
) -> list[tuple[int, int]]:
    """Line and place in it of each panel (row, column). flows: without regard to rows, where a
    row does not fit in a line."""
    if beside == columns:
        return [(row, column) for row, column in present]
    if flows:
        return [divmod(index, beside) for index in range(len(present))]
    lines = math.ceil(columns / beside)
    return [(row * lines + column // beside, column % beside) for row, column in present]


def _panel_height(style: FigureStyle, panel: PanelSize, width: float, lines: int) -> float:
    if style.width_in is None or panel.keeps_height:
        return panel.height
    height = panel.height * min(1.0, width / panel.width)
    lowest = style.room(LOWEST_PANEL_IN)
    height = min(height, max(style.room(HIGHEST_NARROW_IN), STEEPEST * width))
    height = max(height, min(panel.height, FLATTEST * width), lowest)
    return height if style.height_in is None else min(height, max(lowest, style.height_in / lines))


def _sharer(grid: Grid, row: int, column: int, sharing: Sharing) -> Axes | None:
    """The axes that this one shares with: the first of its row, its column, or of all."""
    if sharing is False:
        return None
    others = {"row": grid[row], "col": grid[:, column]}.get(str(sharing), grid)
    return next((axes for axes in others.flat if axes is not None), None)


def _shown(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison and axes.get_visible()]


def _say_once(figure: Figure) -> None:
    """Leave out labels, and figures of shared axes, that the panel to the left or below has."""
    by_place = {}
    for axes in _shown(figure):
        spec = axes.get_subplotspec()
        if spec is not None and spec.get_gridspec().figure is figure:
            by_place[spec.rowspan.start, spec.colspan.start] = axes
    labels = {axes: (axes.get_xlabel(), axes.get_ylabel()) for axes in by_place.values()}
    for (row, column), axes in by_place.items():
        left, below = by_place.get((row, column - 1)), by_place.get((row + 1, column))
        if left is not None and axes.get_shared_y_axes().joined(axes, left):
            axes.tick_params(axis="y", labelleft=False)
        if left is not None and labels[axes][1] == labels[left][1]:
            axes.set_ylabel("")
        if below is not None and axes.get_shared_x_axes().joined(axes, below):
            axes.tick_params(axis="x", labelbottom=False)
        if below is not None and labels[axes][0] == labels[below][0]:
            axes.set_xlabel("")


def _keep_positions(figure: Figure) -> None:
    """Axes stay where the layout has put them, whatever format they are written in."""
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(each, DIGITS) for each in axes.get_position().bounds])


def _missing_height(figure: Figure, style: FigureStyle, panels_height: float) -> float:
    """Inches that the panels lack for axes of `LOWEST_AXES_IN` and `SMALLEST_AXES_SHARE`."""
    specs = [(axes, axes.get_subplotspec()) for axes in _shown(figure)]
    placed = [(axes, spec) for axes, spec in specs if spec is not None]
    if not placed:
        return 0.0
    lines = placed[0][1].get_gridspec().nrows
    names = max(text_fitting.height_of_names(axes) for axes, _ in placed) / figure.dpi
    wanted = max(SMALLEST_AXES_SHARE * panels_height / lines, style.room(LOWEST_AXES_IN), names)
    least = min(axes.get_window_extent().height for axes, _ in placed) / figure.dpi
    return lines * max(0.0, wanted - least)

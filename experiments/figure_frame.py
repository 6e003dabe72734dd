"""What stands around a figure's panels: title, legend and notes, and where they go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from experiments import text_fitting
from experiments.figure_style import FigureStyle, note_size

PAD_IN = 0.05
MOST_IN_ONE_COLUMN = 3
"""Entries of a legend: more stand in two columns, even if that breaks long ones."""


def add_title(figure: Figure, style: FigureStyle, title: str, width: float) -> float:
    """Put it on the figure; the height that it takes, in inches."""
    text = figure.text(
        0.5, 1.0, title, ha="center", va="top", fontsize=plt.rcParams["figure.titlesize"],
        gid="title", linespacing=style.line_spacing,
    )  # fmt: skip
    text_fitting.wrap(text, (width - 2 * PAD_IN) * figure.dpi)
    return extent_in(figure, text)[1] + 2 * PAD_IN


def add_legend(
    figure: Figure, style: FigureStyle, handles: Sequence[Artist], width: float, beside: bool
) -> Legend:
    """As many entries in a line as fit, in as few columns as that takes. Where a long one would
    have many stand in one column, long ones are broken."""
    whole = [(columns, 0.9) for columns in range(len(handles), 0, -1)]
    if len(handles) > MOST_IN_ONE_COLUMN:
        whole.insert(-1, (2, 1 / 3))
    for columns, share in [(1, math.inf)] if beside else whole:
        lines = math.ceil(len(handles) / columns)
        legend = figure.legend(
            handles=list(handles), loc="lower left", ncols=math.ceil(len(handles) / lines),
            borderaxespad=0, borderpad=0.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_linespacing(style.line_spacing)
            text_fitting.wrap(text, share * width * figure.dpi)
        if beside or extent_in(figure, legend)[0] <= width or (columns, share) == whole[-1]:
            break
        legend.remove()
    return legend


def add_notes(figure: Figure, style: FigureStyle, notes: Sequence[str], width: float) -> float:
    """Put them on the figure, a line each; the height that they take, in inches."""
    if not notes:
        return 0.0
    text = figure.text(
        0.0, 0.0, "\n".join(notes), ha="left", va="bottom", fontsize=note_size(), gid="notes",
        linespacing=style.line_spacing,
    )  # fmt: skip
    text_fitting.wrap(text, (width - 2 * PAD_IN) * figure.dpi)
    return extent_in(figure, text)[1] + 2 * PAD_IN


def place(
    figure: Figure,
    legend: Legend | None,
    width: float,
    panels_height: float,
    around: tuple[float, float, float],
) -> None:
    """Resize the figure for panels of `panels_height` inches with `around` (top, bottom, right)
    inches about them, and put everything where it belongs."""
    top, bottom, right = around
    height = panels_height + top + bottom
    wide = width + right
    figure.set_size_inches(wide, height)
    rect = (0, bottom / height, width / wide, panels_height / height)
    figure.set_layout_engine("constrained", rect=rect)
    for text in figure.texts:
        is_title = text.get_gid() == "title"
        x = 0.5 * width / wide if is_title else PAD_IN / wide
        text.set_position((x, 1 - PAD_IN / height if is_title else PAD_IN / height))
    if legend is not None:
        own_width, own_height = extent_in(figure, legend)
        x, y = (wide - own_width) / 2, bottom - own_height
        if right:
            x, y = width + PAD_IN / 2, bottom + (panels_height - own_height) / 2
        legend.set_loc((x / wide, y / height))


def space_lines(figure: Figure, style: FigureStyle) -> None:
    """Give all text that there is the style's line spacing."""
    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        artist.set_linespacing(style.line_spacing)


def extent_in(figure: Figure, artist: Artist) -> tuple[float, float]:
    """Width and height in inches."""
    extent = artist.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return extent.width / figure.dpi, extent.height / figure.dpi

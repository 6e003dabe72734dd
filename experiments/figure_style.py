"""How figures look, and how wide they are: for a screen, a paper's column, a slide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures go to files, also where a display is configured

import matplotlib.pyplot as plt

from harness.config import ConfigError
from harness.conversion import unknown_name

BASE = Path(__file__).parent / "kvarena.mplstyle"

TEX_POINTS = 72.27
"""Points an inch in TeX."""

PAGE_WIDTHS_IN: dict[str, tuple[float, ...]] = {
    "acm": ((506.295 - 24) / 2 / TEX_POINTS, 506.295 / TEX_POINTS),
    "usenix": ((7 - 0.33) / 2, 7.0),
    "neurips": (5.5,),
}
"""Inches of one column, and of two where a page has two.

acm: acmart.cls, format sigconf: letter paper, 54 pt of margin left and right, a column separation
of 2 pc, hence \\textwidth 506.295 pt and \\columnwidth 241.1475 pt. usenix: usenix2019_v3.sty: a
text block of 7 in with a gutter of 0.33 in. neurips: neurips_2025.sty: one column, 5.5 in.
"""

BEAMER_TEXT_IN = 14 / 2.54
"""\\textwidth of beamer with aspectratio=169: 16 cm of paper less two margins of 1 cm."""


@dataclass(frozen=True, slots=True)
class FigureStyle:
    """sheet: matplotlib's settings, laid over kvarena.mplstyle; None for these alone. width_in: of
    every figure, exactly; None for what its panels ask for. height_in: panels become less high, as
    far as they stay readable, for a figure to keep it. line_spacing: from one line of a
    text to the next, in heights of the font. text_scale: how much more room text takes than the
    paper's does.
    """

    name: str
    sheet: Path | None = None
    width_in: float | None = None
    height_in: float | None = None
    line_spacing: float = 1.2
    text_scale: float = 1.0

    def room(self, inches: float) -> float:
        """Inches for what has `inches` in a paper's column."""
        return self.text_scale * inches

    @contextmanager
    def context(self) -> Iterator[None]:
        """Matplotlib's settings are this style's, for the time being."""
        with plt.style.context([path for path in (BASE, self.sheet) if path is not None]):
            yield


DEFAULT = FigureStyle("default")

STYLES = {
    "default": DEFAULT,
    "paper": FigureStyle(
        "paper",
        BASE.with_name("kvarena-paper.mplstyle"),
        PAGE_WIDTHS_IN["acm"][0],
        line_spacing=0.95,
    ),
    "slides": FigureStyle(
        "slides",
        BASE.with_name("kvarena-slides.mplstyle"),
        BEAMER_TEXT_IN,
        height_in=2.9,
        text_scale=1.5,
    ),
}


def note_size() -> float:
    """Points of numbers beside marks, and of notes, in the style at hand."""
    return float(plt.rcParams["figure.labelsize"])


def figure_style(name: str, width: str = "", columns: int = 1) -> FigureStyle:
    """The style `name`, its figures as wide as `columns` of `width`: a page of `PAGE_WIDTHS_IN`
    or inches; empty for the style's own. Raises ConfigError for a width that there is not."""
    if name not in STYLES:
        raise ConfigError(unknown_name(name, tuple(STYLES), "style"))
    style = STYLES[name]
    if not width:
        if columns == 1:
            return style
        if name != "paper":
            raise ConfigError(f"--columns {columns}: of which page? give --width, too")
        width = "acm"
    return replace(style, width_in=_inches(width, columns))


NARROWEST_IN, WIDEST_IN = 2.0, 40.0


def _inches(width: str, columns: int) -> float:
    if width in PAGE_WIDTHS_IN:
        widths = PAGE_WIDTHS_IN[width]
        if columns > len(widths):
            raise ConfigError(f"--columns {columns}: a page of {width} has {len(widths)} column")
        return widths[columns - 1]
    try:
        inches = columns * float(width)
    except ValueError:
        raise ConfigError(
            unknown_name(width, tuple(PAGE_WIDTHS_IN), "width") + "; or inches, as 3.3"
        ) from None
    if not NARROWEST_IN <= inches <= WIDEST_IN:
        raise ConfigError(f"--width {width}: a figure is {NARROWEST_IN:g} to {WIDEST_IN:g} in wide")
    return inches

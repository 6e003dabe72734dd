"""Widths of pages, and that text fits where it stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from tiny_study import Study

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import STYLES, FigureStyle, figure_style
from experiments.figures import compare, memory_fraction, page_size
from harness.config import ConfigError

NARROW = [STYLES["paper"], STYLES["slides"], figure_style("paper", "neurips")]

SLOW = [NARROW[0], *(pytest.param(style, marks=pytest.mark.slow) for style in NARROW[1:])]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Figures as they were when they were written, as PNG."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: object) -> None:
        if options["format"] == "png":
            figures.append(figure)
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(plt, "close", lambda figure: None)
    yield figures
    monkeypatch.undo()
    plt.close("all")


def texts_of(figure: Figure) -> list[Text]:
    """What is written on a figure."""
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def check_fits(figure: Figure, style: FigureStyle) -> None:
    """Nothing is cut off, too small, or over something else; the width is the style's."""
    figure.draw_without_rendering()
    width = figure.get_size_inches()[0]
    assert style.width_in is None or width == pytest.approx(style.width_in)
    edge = figure.bbox
    texts = texts_of(figure)
    for text in texts:
        box = text.get_window_extent()
        assert text.get_fontsize() >= 7, text
        assert box.x0 >= -1 and box.x1 <= edge.x1 + 1, text
        assert box.y0 >= -1 and box.y1 <= edge.y1 + 1, text
    shown = [axes for axes in figure.axes if axes.axison]
    for axes in shown:
        ticks = {id(label) for label in axes.xaxis.get_ticklabels()}
        labels = [text for text in texts if id(text) in ticks]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)), axes.get_title()
        assert axes.get_window_extent().height > 0.5 * figure.dpi
    blocks = [axes.get_tightbbox() for axes in shown]
    blocks += [legend.get_window_extent() for legend in figure.legends]
    blocks += [text.get_window_extent() for text in figure.texts]
    for one, other in itertools.combinations(blocks, 2):
        assert min(one.x1, other.x1) - max(one.x0, other.x0) < 3 or (
            min(one.y1, other.y1) - max(one.y0, other.y0) < 3
        ), (one, other)


@pytest.mark.parametrize("style", SLOW, ids=lambda style: f"{style.name} {style.width_in:.2f}")
def test_figures_fit(
    compared: Study, drawn: list[Figure], style: FigureStyle, tmp_path: Path
) -> None:
    rows = compared.rows
    compare.draw(rows, compared.jobs, tmp_path, style)
    swept = pd.concat([rows.assign(page_size=2**power) for power in range(9)])
    page_size.draw(swept.assign(executor="torch"), compared.jobs, tmp_path, style)
    memory_fraction.draw(rows.assign(memory_fraction=0.5), compared.jobs, tmp_path, style)
    assert len(drawn) == 5
    for figure in drawn:
        check_fits(figure, style)


@pytest.mark.parametrize("style", [STYLES["default"], *NARROW], ids=lambda style: style.name)
def test_crowded_panels_are_mended(style: FigureStyle) -> None:
    names = ["contiguous first fit\noracle", "paged", "paged\nprefix", "contiguous buddy\npow2"]
    with style.context():
        figure, grid = subplots(style, 1, 5, PanelSize(2.6, 2.4), sharey=True, most=3)
        for place, axes in enumerate(grid[0]):
            axes.bar(range(4), [99.5, 100.5, 120, 119], 0.9)
            for x, height in enumerate((99.5, 100.5, 120, 119)):
                axes.annotate(
                    f"{1000 * height:.1f}", (x, height), ha="center", va="bottom", fontsize=7
                )
            axes.set_xticks(range(4), names)
            axes.set_title(f"panel {place}, whose title is longer than it is wide itself")
            axes.set_ylabel("what is measured, in a unit\nwith a name of its own")
        handles = [Patch(label=f"a strategy with a long name, {n}") for n in range(5)]
        arrange(
            figure, style, title=" ".join(["many words"] * 20), handles=handles,
            notes=["† " + " ".join(["a note"] * 30)],
        )  # fmt: skip
        check_fits(figure, style)
        first = [axes for axes in grid[0] if axes.get_ylabel()]
        assert len(first) == len({axes.get_subplotspec().rowspan.start for axes in grid[0]})
    plt.close(figure)


def test_pages_have_their_columns() -> None:
    # as \the\columnwidth and \the\textwidth print them, in TeX's points
    acm = [figure_style("paper", "acm", columns).width_in for columns in (1, 2)]
    assert [72.27 * float(width or 0) for width in acm] == pytest.approx([241.14749, 506.295])
    assert figure_style("paper").width_in == acm[0]
    assert figure_style("paper", "", 2).width_in == acm[1]
    assert figure_style("paper", "usenix").width_in == pytest.approx(3.335)
    assert figure_style("default", "3.5", 2).width_in == 7.0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("papr",), "did you mean paper"),
        (("paper", "amc"), "choose one of acm.*or inches"),
        (("paper", "neurips", 2), "a page of neurips has 1 column"),
        (("paper", "0.5"), "2 to 40 in wide"),
        (("default", "", 2), "give --width"),
    ],
)
def test_a_width_that_is_none_is_told(asked: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        figure_style(*asked)

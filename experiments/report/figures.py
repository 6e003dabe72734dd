"""A study's figures as SVG that can stand beside other SVG in one page."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from experiments.figures import answers, draw_figures
from experiments.report.table_view import TableView, plain_view
from experiments.stored import StoredStudy
from experiments.table_output import PIPE_WIDTH
from harness.config import ConfigError

MAX_POINTS = 60
"""Lines of a figure's points that the page has; the CSV beside the figure has all."""

_SVG = re.compile(r"<svg\b.*</svg>", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_WIDTH = re.compile(r'<svg\b[^>]*\bwidth="([\d.]+)pt"')
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


class FigureView(NamedTuple):
    """svg: the element. points: what it shows."""

    name: str
    svg: str
    points: TableView


def figure_views(study: StoredStudy, prefix: str) -> list[FigureView]:
    """Each of the study's figures, drawn from its rows; an export's as they lie in it. prefix: of
    all ids within the SVG."""
    names = study.record.figures
    if study.complete.empty or not names:
        return []
    if study.is_exported:
        return _views(sorted((study.folder / "figures").iterdir()), prefix)
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_figures(names, study.complete, study.jobs, Path(folder) / "figures")
        return _views(paths, prefix)


def printed_answers(study: StoredStudy) -> list[str]:
    """What the study's figures print of the rows, as text of PIPE_WIDTH columns."""
    if study.complete.empty:
        return []
    try:
        given = answers(study.record.figures, study.complete, study.jobs)
    except ConfigError:  # it is read off steps, which an export has not
        if not study.is_exported:
            raise
        return []
    texts = []
    for answer in given:
        file = io.StringIO()
        Console(file=file, width=PIPE_WIDTH).print(answer)
        texts.append("\n".join(line.rstrip() for line in file.getvalue().splitlines()))
    return texts


def inline_svg(text: str, prefix: str, alternative: str) -> str:
    """The <svg> of a file, with ids of its own in a page, a role and a text alternative, and its
    width in points for the style sheet."""
    found = _SVG.search(text)
    if found is None:
        raise ValueError("no <svg> element")
    svg = _METADATA.sub("", found[0])
    width = _WIDTH.search(svg)
    size = f' style="--width: {float(width[1]):.0f}pt"' if width else ""
    svg = _REFERENCE.sub(rf"\g<1>{prefix}", svg)
    label = alternative.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"{size}', 1)


def _views(paths: Sequence[Path], prefix: str) -> list[FigureView]:
    pictures = [path for path in paths if path.suffix == ".svg"]
    return [_view(path, paths, f"{prefix}-{path.stem}-") for path in pictures]


def _view(picture: Path, paths: Sequence[Path], prefix: str) -> FigureView:
    name = picture.stem
    by_suffix = {path.name.removeprefix(name): path for path in paths}
    points = pd.read_csv(by_suffix.get(".csv") or by_suffix[".csv.gz"])
    alternative = (
        f"Figure {name}, of {len(points):,} points over {', '.join(points.columns[:6])}; "
        "they are in the table below it"
    )
    svg = inline_svg(picture.read_text(), prefix, alternative)
    return FigureView(name, svg, _points(name, points))


def _points(name: str, points: pd.DataFrame) -> TableView:
    shown = points.head(MAX_POINTS)
    left_out = len(points) - len(shown)
    note = f"{left_out:,} more lines are in figures/{name}.csv." if left_out else ""
    lines = [[_plain(value) for value in line] for line in shown.itertuples(index=False)]
    return plain_view(f"points of {name}", list(points.columns), lines, [note] if note else [])


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") else value

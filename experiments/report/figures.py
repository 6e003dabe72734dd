"""A study's figures as images in a page: whoever wrote an SVG, as an image it runs no script and
fetches nothing."""

from __future__ import annotations

import base64
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

_WIDTH = re.compile(r'<svg\b[^>]*\bwidth="([\d.]+)pt"')


class FigureView(NamedTuple):
    """image: an SVG as a data URI. alternative: in words. width_pt: its own, 0 where unknown.
    points: what it shows."""

    name: str
    image: str
    alternative: str
    width_pt: float
    points: TableView


def figure_views(study: StoredStudy) -> list[FigureView]:
    """Each of the study's figures, drawn from its rows; an export's as they lie in it."""
    names = study.record.figures
    if study.complete.empty or not names:
        return []
    if study.is_exported:
        return _views(sorted((study.folder / "figures").iterdir()))
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_figures(names, study.complete, study.jobs, Path(folder) / "figures")
        return _views(paths)


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
        Console(file=file, width=PIPE_WIDTH, markup=False).print(answer)
        texts.append("\n".join(line.rstrip() for line in file.getvalue().splitlines()))
    return texts


def _views(paths: Sequence[Path]) -> list[FigureView]:
    return [_view(path, paths) for path in paths if path.suffix == ".svg"]


def _view(picture: Path, paths: Sequence[Path]) -> FigureView:
    name = picture.stem
    by_suffix = {path.name.removeprefix(name): path for path in paths}
    table = by_suffix.get(".csv") or by_suffix[".csv.gz"]
    try:
        points = pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{table}: cannot be read ({error}): draw it again") from error
    alternative = (
        f"Figure {name}, of {len(points):,} points over {', '.join(points.columns[:6])}; "
        "they are in the table below it"
    )
    svg = picture.read_bytes()
    width = _WIDTH.search(svg.decode(errors="replace"))
    image = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return FigureView(
        name, image, alternative, float(width[1]) if width else 0.0, _points(name, points)
    )


def _points(name: str, points: pd.DataFrame) -> TableView:
    shown = points.head(MAX_POINTS)
    left_out = len(points) - len(shown)
    note = f"{left_out:,} more lines are in figures/{name}.csv." if left_out else ""
    lines = [[_plain(value) for value in line] for line in shown.itertuples(index=False)]
    return plain_view(f"points of {name}", list(points.columns), lines, [note] if note else [])


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") else value

"""What the PagedAttention paper printed beside what was found here: one table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import RenderableType

import experiments.figures
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper.quantities import Quantity, as_frame, to_markdown, to_terminal
from experiments.plotting import write_points
from harness.runs.half_written import write_whole
from harness.runs.jobs import Job


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_table.md` and `paper_table.csv`; of a study's own figures, beside the comparison of
    all runs."""
    found = quantities(rows, jobs)
    if not found:
        return []
    target = folder.parent if folder.name == "figures" else folder
    markdown, csv = target / "paper_table.md", target / "paper_table.csv"
    write_whole(markdown, to_markdown(found))
    write_points(as_frame(found), csv)
    return [markdown, csv]


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> RenderableType | None:
    """The table, for a terminal."""
    found = quantities(rows, jobs)
    return to_terminal(found) if found else None


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """What every figure of the paper says of `rows`: of all modules `paper_*` that have
    `quantities(rows, jobs)`, in the order of the figures."""
    names = [
        module.name
        for module in pkgutil.iter_modules(experiments.figures.__path__)
        if module.name.startswith("paper_fig")
    ]
    found: list[Quantity] = []
    for name in sorted(names, key=_number):
        found += importlib.import_module(f"experiments.figures.{name}").quantities(rows, jobs)
    return found


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))

"""Figures over finished runs: a module with `draw` is a figure, found by its name.

A module may have `answer(rows, jobs) -> RenderableType | None` too: what it makes of the rows is
printed in place of the comparison of all runs, which is then in the files only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
from rich.console import RenderableType

from experiments.figure_style import DEFAULT, FigureStyle
from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.runs.jobs import Job


def available() -> tuple[str, ...]:
    """Names that an experiment's `figures` may list."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def draw_figures(
    names: Sequence[str],
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    folder: Path,
    style: FigureStyle = DEFAULT,
) -> list[Path]:
    """Have each named module draw what it can from `rows`; returns the files written.

    Each module has `draw(rows, jobs, folder, style) -> list[Path]`, which draws from complete
    runs and returns an empty list where they hold nothing for it.
    """
    paths: list[Path] = []
    for module in map(_load, names):
        paths += module.draw(rows, jobs, folder, style)
    return paths


def answers(names: Sequence[str], rows: pd.DataFrame, jobs: Sequence[Job]) -> list[RenderableType]:
    """What the named modules that have `answer` print of `rows`, all of which are complete."""
    asked = [module for module in map(_load, names) if hasattr(module, "answer")]
    given = [module.answer(rows, jobs) for module in asked]
    return [answer for answer in given if answer is not None]


def _load(name: str) -> ModuleType:
    if name not in available():
        raise ConfigError("sweep.figures: " + unknown_name(name, available(), "value"))
    return importlib.import_module(f"{__name__}.{name}")

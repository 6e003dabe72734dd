"""Figures over finished runs: a module with `draw` is a figure, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.config import ConfigError, unknown_name
from harness.runs.jobs import Job


def available() -> tuple[str, ...]:
    """Names that an experiment's `figures` may list."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def draw_figures(
    names: Sequence[str], rows: pd.DataFrame, jobs: Sequence[Job], folder: Path
) -> list[Path]:
    """Have each named module draw what it can from `rows`; returns the files written.

    Each module has `draw(rows, jobs, folder) -> list[Path]`, which draws from complete runs
    and returns an empty list where they hold nothing for it.
    """
    paths: list[Path] = []
    for name in names:
        if name not in available():
            raise ConfigError("sweep.figures: " + unknown_name(name, available(), "value"))
        module = importlib.import_module(f"{__name__}.{name}")
        paths += module.draw(rows, jobs, folder)
    return paths

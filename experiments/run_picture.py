"""One run's memory over time as a picture: its memory map where one was recorded, else its classes.

`harness.tracking` loads this module by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import FigureStyle
from experiments.figures.memory_map import draw_runs
from experiments.plotting import CLASS_COLOURS, class_patches, write_pictures
from harness.measure.ledger import CLASSES
from harness.runs.store import StoredRun

MAX_MAP_SLOTS = 65_536
"""Larger pools have more slots than a picture has pixels, by far: their classes are drawn."""

MAX_POINTS = 1000

STYLE = FigureStyle("picture", width_in=6.4)


class Picture(NamedTuple):
    """caption: what it shows, in a line."""

    path: Path
    caption: str


def save_picture(run: StoredRun, folder: Path) -> Picture:
    """`folder/memory.png` of the first repetition of a complete run."""
    has_map = bool(run.config["measure"]["memory_map"])
    small = int(run.summary[0]["pool_tokens"]) <= MAX_MAP_SLOTS
    path = folder / "memory.png"
    with STYLE.context():
        if has_map and small:
            figure, caption = draw_runs([run], STYLE)[0], "memory map: slot by slot over time"
        else:
            figure, caption = _draw_classes(run), "ledger classes over time"
        write_pictures(figure, [path])
    return Picture(path, f"{caption}, repetition 0 ({run.label})")


def _draw_classes(run: StoredRun) -> Figure:
    steps = run.first_steps()
    steps = steps.iloc[:: max(1, -(-len(steps) // MAX_POINTS))]
    slots = steps[list(CLASSES)]
    shares = 100 * slots.div(slots.sum(axis="columns"), axis="index")
    shown = [name for name in CLASSES if slots[name].any()]
    figure, grid = subplots(STYLE, 1, 1, PanelSize(6.4, 3.2))
    axes = grid[0, 0]
    axes.stackplot(
        steps["start_s"],
        *(shares[name] for name in shown),
        colors=[CLASS_COLOURS[name] for name in shown],
        step="post",
        linewidth=0,
    )
    axes.set_xlim(steps["start_s"].min(), steps["start_s"].max())
    axes.set_ylim(0, 100)
    axes.grid(False)
    axes.set_xlabel("time, s")
    axes.set_ylabel("share of the pool, %")
    axes.set_title(run.label)
    arrange(figure, STYLE, handles=class_patches(shown))
    return figure

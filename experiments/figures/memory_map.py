"""The pool over time as a picture: time to the right, slots upwards, colour by ledger class.

From runs with measure.memory_map=true. For a folder of stored runs:

    python -m experiments.figures.memory_map results/memory_map
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.exported import run_in_full
from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.plotting import CLASS_COLOURS, class_patches, save
from harness.config import RunConfig
from harness.conversion import from_mapping
from harness.runs.jobs import Job, strategy_label
from harness.runs.store import RunStore, StoredRun

NUM_COLUMNS = 720
"""Moments in time that a panel shows."""

MAX_PANELS = 4
MAPPED = ("token", "reserved", "over_reserved", "size_class", "tail")
UNMAPPED = ("withheld", "stranded", "refused", "free")
ORDER = (*MAPPED, *UNMAPPED)
NEIGHBOUR_SHADE = 0.16
"""Every other sequence is this much lighter, so that neighbours can be told apart."""

Classes = npt.NDArray[np.uint8]


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`memory_map`: the first repetition of each strategy's first run that has a map."""
    chosen: dict[str, Job] = {}
    for job in jobs:
        if job.config.measure.memory_map and job.run_id in set(rows["run_id"]):
            chosen.setdefault(strategy_label(job.config.allocator), job)
    mapped = list(chosen.values())[:MAX_PANELS]
    runs = [run for job in mapped if (run := run_in_full(job)) is not None]
    if not runs:
        return []
    with style.context():
        figure, points = draw_runs(runs, style)
        return save(figure, "memory_map", folder, points, mapped)


def draw_runs(runs: Sequence[StoredRun], style: FigureStyle) -> tuple[Figure, pd.DataFrame]:
    """One panel a run over the same span of time: while requests are waiting in all of them."""
    frames = [_first_repetition(run.frame("memory_map")) for run in runs]
    steps = [run.first_steps() for run in runs]
    until_s = min(map(_load_end_s, steps))
    figure, grid = subplots(style, 1, len(runs), PanelSize(3.4, 3.6), sharey=True)
    shown: set[str] = set()
    for axes, run, frame, step in zip(grid[0], runs, frames, steps, strict=True):
        num_slots = int(run.summary[0]["pool_tokens"])
        classes, lighter = rasterise(frame, step, run.config["kv"]["page_size"], num_slots, until_s)
        axes.imshow(
            _colours(classes, lighter), origin="lower", aspect="auto", interpolation="antialiased",
            extent=(0, until_s, 0, num_slots), interpolation_stage="rgba",
        )  # fmt: skip
        axes.grid(False)
        axes.set_title(_title(run, step, num_slots, until_s))
        axes.set_xlabel("time, s")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        shown |= {ORDER[index] for index in np.unique(classes)}
        axes.set_ylabel("slot of the pool")
    arrange(figure, style, handles=class_patches(name for name in ORDER if name in shown))
    labels = [_label(run) for run in runs]
    points = pd.concat([f.assign(strategy=label) for f, label in zip(frames, labels, strict=True)])
    return figure, points[points["from_s"] < until_s]


def rasterise(
    intervals: pd.DataFrame, steps: pd.DataFrame, page_size: int, num_slots: int, until_s: float
) -> tuple[Classes, npt.NDArray[np.bool_]]:
    """Class of each slot (index into ORDER) at NUM_COLUMNS moments, and whether to lighten it.

    Slots that no sequence maps are of the one class that the step has for them.
    """
    moments = (np.arange(NUM_COLUMNS) + 0.5) * until_s / NUM_COLUMNS
    classes = np.empty((num_slots, NUM_COLUMNS), np.uint8)
    classes[:] = _unmapped_class(steps, moments)
    lighter = np.zeros((num_slots, NUM_COLUMNS), bool)
    begins = np.searchsorted(moments, intervals["from_s"].to_numpy())
    ends = np.searchsorted(moments, intervals["to_s"].to_numpy())
    visible = begins < ends
    counts = intervals[list(MAPPED)].to_numpy()[visible]
    pages = intervals["page"].to_numpy()[visible]
    sequences = intervals["seq_id"].to_numpy()[visible]
    for page, sequence, sizes, begin, end in zip(
        pages, sequences, counts, begins[visible], ends[visible], strict=True
    ):
        low = int(page) * page_size
        lighter[low : low + page_size, begin:end] = bool(sequence % 2)
        for index, size in enumerate(sizes):
            classes[low : low + size, begin:end] = index
            low += int(size)
    return classes, lighter


def _unmapped_class(steps: pd.DataFrame, moments: npt.NDArray[np.float64]) -> Classes:
    at = np.searchsorted(steps["start_s"].to_numpy(), moments, side="right") - 1
    present = steps[list(UNMAPPED)].to_numpy()[np.maximum(at, 0)] > 0
    return (len(MAPPED) + np.where(present.any(1), present.argmax(1), len(UNMAPPED) - 1)).astype(
        np.uint8
    )


def _colours(classes: Classes, lighter: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    palette = np.array([to_rgb(CLASS_COLOURS[name]) for name in ORDER], np.float32)
    light = palette + NEIGHBOUR_SHADE * (1 - palette)
    return np.where(lighter[..., None], light[classes], palette[classes])


def _title(run: StoredRun, steps: pd.DataFrame, num_slots: int, until_s: float) -> str:
    inside = steps[steps["start_s"] < until_s]
    weights = inside["duration_s"]
    used = float((inside["token"] * weights).sum() / weights.sum()) / num_slots
    running = float((inside["num_running"] * weights).sum() / weights.sum())
    return f"{_label(run)}\n{used:.0%} used, {running:.1f} requests at a time"


def _label(run: StoredRun) -> str:
    return run.label.split(" · ", 1)[0]


def _load_end_s(steps: pd.DataFrame) -> float:
    """When the queue is empty for good; the end of a run that never had one."""
    waiting = steps[steps["num_waiting"] > 0]
    last = waiting if len(waiting) else steps
    return float((last["start_s"] + last["duration_s"]).max())


def _first_repetition(frame: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = frame[frame["repetition"] == frame["repetition"].min()]
    return first


def main(arguments: Sequence[str]) -> int:
    """Draw the maps found in the given results folder beside its runs."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m experiments.figures.memory_map RESULTS_FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    maps = sorted(folder.glob("*/memory_map.parquet"))
    found: dict[str, StoredRun] = {}
    for path in maps:
        run = RunStore(folder).find(path.parent.name)
        if run is not None and run.status == "complete":
            found.setdefault(_label(run), run)
    if not found:
        print(f"{folder}: no run has a map; run with measure.memory_map=true", file=sys.stderr)
        return 1
    with DEFAULT.context():
        runs = list(found.values())[:MAX_PANELS]
        figure, points = draw_runs(runs, DEFAULT)
        jobs = [
            Job(from_mapping(RunConfig, run.config), run.run_id, run.label, "", folder, "")
            for run in runs
        ]
        for path in save(figure, "memory_map", folder / "figures", points, jobs):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

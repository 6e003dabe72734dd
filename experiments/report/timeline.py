"""Memory over time as small pictures with a slider's data: a map of the pool where it was stored,
else the ledger's classes."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from experiments.figures import memory_map
from experiments.plotting import CLASS_COLOURS, CLASS_LABELS
from experiments.report.cells import Cell, Group, labels_of, representatives
from experiments.stored import StoredStudy
from harness.measure.ledger import CLASSES
from harness.runs.store import StoredRun

NUM_MOMENTS = 240
"""Moments that the slider goes through: a third of those of the figure's panels."""

MAX_BINS = 2048
"""A map has at most so many rows; in a larger pool a row stands for several slots."""

LEDGER_ROWS = 160
"""Height of a picture of the ledger alone, in pixels."""

ENDED = 255

Raster = npt.NDArray[np.uint8]


class Panel(NamedTuple):
    """One run's memory over time.

    is_map: rows are places in the pool, else classes are stacked. image: PNG as a data URI, time
    to the right. width, height: in pixels. slots_per_row: of a map. counts: slots of each class at
    each moment until the run ends, by class that occurs. alternative: the picture in words.
    """

    label: str
    is_map: bool
    image: str
    width: int
    height: int
    num_slots: int
    slots_per_row: int
    end_s: float
    counts: dict[str, list[int]]
    alternative: str


class TimelineView(NamedTuple):
    """A group's panels over the same span of time. unit: of that time."""

    title: str
    panels: tuple[Panel, ...]
    until_s: float
    time: str
    note: str

    @property
    def has_map(self) -> bool:
        return any(panel.is_map for panel in self.panels)

    @property
    def slots_per_dot(self) -> int:
        return max(panel.slots_per_row for panel in self.panels)

    @property
    def first_moment(self) -> int:
        """Where the slider stands at first: half-way through the shortest run."""
        shortest = min(panel.end_s for panel in self.panels)
        return int(NUM_MOMENTS * shortest / self.until_s / 2)


def timeline_view(group: Group, study: StoredStudy) -> TimelineView | None:
    """Panels of the group's representatives, of the first repetition of each; None without any, or
    where the study is an export, which has no steps."""
    if study.is_exported:
        return None
    cells, note = representatives(group)
    steps = {id(cell): _run(cell, study).first_steps() for cell in cells}
    kept = [cell for cell in cells if len(steps[id(cell)])]
    if not kept:
        return None
    until_s = max(_end_s(steps[id(cell)]) for cell in kept)
    panels = tuple(
        _panel(label, cell, study, steps[id(cell)], until_s)
        for label, cell in zip(labels_of(kept), kept, strict=True)
    )
    is_virtual = bool((group.rows["executor"] == "simulated").all())
    return TimelineView(
        group.table.title, panels, until_s, "virtual time" if is_virtual else "time", note
    )


def _run(cell: Cell, study: StoredStudy) -> StoredRun:
    return study.run(str(cell.rows["run_id"].iloc[0]))


def _panel(
    label: str, cell: Cell, study: StoredStudy, steps: pd.DataFrame, until_s: float
) -> Panel:
    run = _run(cell, study)
    moments = (np.arange(NUM_MOMENTS) + 0.5) * until_s / NUM_MOMENTS
    end_s = _end_s(steps)
    counts = counts_at(steps, moments[moments < end_s])
    num_slots = int(counts[:, 0].sum())
    is_map = (run.path / "memory_map.parquet").is_file()
    if is_map:
        intervals = _first_repetition(run.frame("memory_map"))
        page_size = int(run.config["kv"]["page_size"])
        raster, per_row = map_raster(intervals, steps, page_size, num_slots, until_s)
        raster = with_cached(raster, counts)
    else:
        raster, per_row = ledger_raster(counts), 0
    pixels = np.full((raster.shape[0], NUM_MOMENTS), ENDED, np.uint8)
    pixels[:, : counts.shape[1]] = raster[:, : counts.shape[1]]
    return Panel(
        label=label,
        is_map=is_map,
        image=png_uri(pixels),
        width=pixels.shape[1],
        height=pixels.shape[0],
        num_slots=num_slots,
        slots_per_row=per_row,
        end_s=end_s,
        counts={
            name: slots.tolist() for name, slots in zip(CLASSES, counts, strict=True) if slots.any()
        },
        alternative=_alternative(label, is_map, steps, num_slots, end_s),
    )


def counts_at(steps: pd.DataFrame, moments: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Slots of each class (rows, as in CLASSES) at each moment, by the step that began last."""
    at = np.searchsorted(steps["start_s"].to_numpy(dtype=float), moments, side="right") - 1
    return steps[list(CLASSES)].to_numpy(dtype=np.int64)[np.maximum(at, 0)].T


def ledger_raster(counts: npt.NDArray[np.int64]) -> Raster:
    """Classes stacked from the bottom, as indices into CLASSES; the first row is the top."""
    slots = counts[:, 0].sum()
    bounds = np.cumsum(counts, axis=0) / slots
    heights = (np.arange(LEDGER_ROWS) + 0.5) / LEDGER_ROWS
    stacked = (heights[:, None, None] >= bounds[None, :, :]).sum(axis=1)
    return np.minimum(stacked, len(CLASSES) - 1).astype(np.uint8)[::-1]


def map_raster(
    intervals: pd.DataFrame, steps: pd.DataFrame, page_size: int, num_slots: int, until_s: float
) -> tuple[Raster, int]:
    """The pool by place, slot 0 in the last row, as indices into CLASSES, plus len(CLASSES) for
    every other sequence; and the slots that a row stands for, of which the middle one is shown."""
    classes, lighter = memory_map.rasterise(intervals, steps, page_size, num_slots, until_s)
    every = memory_map.NUM_COLUMNS // NUM_MOMENTS
    per_row = -(-num_slots // MAX_BINS)
    rows = np.minimum(np.arange(0, num_slots, per_row) + per_row // 2, num_slots - 1)
    names = np.array([CLASSES.index(name) for name in memory_map.ORDER], np.uint8)
    chosen = np.ix_(rows, np.arange(every // 2, every * NUM_MOMENTS, every))
    return (names[classes[chosen]] + len(CLASSES) * lighter[chosen]).astype(np.uint8)[::-1], per_row


def with_cached(raster: Raster, counts: npt.NDArray[np.int64]) -> Raster:
    """`raster` of a map with unmapped slots as cached at moments when most of them are: the map
    does not say which."""
    unmapped = [CLASSES.index(name) for name in memory_map.UNMAPPED]
    cached = CLASSES.index("cached")
    mostly = counts[cached] > counts[unmapped].sum(axis=0)
    columns = np.zeros(raster.shape[1], bool)
    columns[: len(mostly)] = mostly
    return np.where(np.isin(raster, unmapped) & columns, np.uint8(cached), raster)


def png_uri(pixels: Raster) -> str:
    """Indices as an indexed PNG; free slots and what lies after a run's end are transparent."""
    height, width = pixels.shape
    image = Image.frombytes("P", (width, height), np.ascontiguousarray(pixels).tobytes())
    image.putpalette([value for colour in palette() for value in colour])
    transparent = bytes(
        0 if index in (ENDED, CLASSES.index("free"), CLASSES.index("free") + len(CLASSES)) else 255
        for index in range(256)
    )
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=transparent)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def palette() -> list[tuple[int, int, int]]:
    """Colours of CLASSES, then their lighter shades."""
    plain = [_rgb(CLASS_COLOURS[name]) for name in CLASSES]
    shade = memory_map.NEIGHBOUR_SHADE
    return plain + [
        (
            round(r + shade * (255 - r)),
            round(g + shade * (255 - g)),
            round(b + shade * (255 - b)),
        )
        for r, g, b in plain
    ]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _alternative(
    label: str, is_map: bool, steps: pd.DataFrame, num_slots: int, end_s: float
) -> str:
    weights = steps["duration_s"].to_numpy(dtype=float)
    words = []
    for name in CLASSES:
        share = float((steps[name] * weights).sum() / weights.sum()) / num_slots
        if share >= 5e-4:
            words.append(f"{CLASS_LABELS[name]} {100 * share:.1f} %")
    what = "Map of the pool over time" if is_map else "Classes of the ledger over time"
    return f"{what}, {label}, {end_s:.4g} s; on average {', '.join(words)}"


def _end_s(steps: pd.DataFrame) -> float:
    return float((steps["start_s"] + steps["duration_s"]).max())


def _first_repetition(frame: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = frame[frame["repetition"] == frame["repetition"].min()]
    return first

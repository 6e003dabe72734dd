"""The pool by class under each strategy, as stacked bars."""

from __future__ import annotations

import math
from typing import NamedTuple

from experiments.checks import SHARES
from experiments.plotting import CLASS_LABELS
from experiments.report.cells import Group, answering_cells, labels_of
from harness.measure.ledger import CLASSES

MIN_SHOWN = 5e-4
"""A smaller share has no segment."""

MIN_LABELLED = 0.055
"""A segment this wide has room for its percentage."""


class Segment(NamedTuple):
    """name: of the class. share: of the pool, between 0 and 1. text: on it, where there is room."""

    name: str
    label: str
    share: float
    text: str


class Bar(NamedTuple):
    """alternative: all of it in words."""

    label: str
    segments: tuple[Segment, ...]
    alternative: str
    used: str


class WasteView(NamedTuple):
    """A group's bars. classes: that occur in any."""

    title: str
    bars: tuple[Bar, ...]
    classes: tuple[str, ...]


def waste_view(group: Group) -> WasteView:
    """A bar for each row of the table whose runs went well; of a search, for what each cell
    sustained."""
    cells = answering_cells(group)
    bars = []
    for cell, label in zip(cells, labels_of(cells), strict=True):
        shares = [cell.row.cells[metric].mean for metric in SHARES]
        segments = tuple(
            Segment(name, CLASS_LABELS[name], share, _text(share))
            for name, share in zip(CLASSES, shares, strict=True)
            if math.isfinite(share) and share >= MIN_SHOWN
        )
        words = ", ".join(f"{s.label} {100 * s.share:.1f} %" for s in segments)
        used = cell.row.cells["utilisation"]
        shown = f"{100 * used.mean:.1f}"
        if math.isfinite(used.half_width):
            shown += f" ±{100 * used.half_width:.1f}"
        bars.append(Bar(label, segments, f"{label}: {words}", shown))
    present = {segment.name for bar in bars for segment in bar.segments}
    return WasteView(
        group.table.title, tuple(bars), tuple(name for name in CLASSES if name in present)
    )


def _text(share: float) -> str:
    return f"{100 * share:.0f}" if share >= MIN_LABELLED else ""

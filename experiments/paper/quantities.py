"""What a paper's figure says and what ours says of the same: the rows of the closing table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from experiments.line_panels import published
from harness.measure.statistics import Interval

PAPER = "pagedattention"

Published = float | tuple[float, float]
"""A number, or the ends of a range that a text gives."""


class Quantity(NamedTuple):
    """unit: `%` for shares, whose deviation is in points; `x` for ratios; else a word, or nothing.

    reason: why ours cannot be compared; empty where it can. note: under which condition ours was
    found, where that is not the paper's.
    """

    figure: str
    name: str
    unit: str
    published: Published
    ours: Interval
    reason: str = ""
    note: str = ""

    @property
    def deviation(self) -> float:
        """Ours against the published number, or the nearer end of its range: 0 within it. Points
        where the unit is %, percent of the published elsewhere."""
        low, high = _ends(self.published)
        nearest = min(max(self.ours.mean, low), high)
        difference = self.ours.mean - nearest
        return difference if self.unit == "%" else 100 * difference / nearest


def published_numbers() -> Mapping[str, Any]:
    """experiments/published/pagedattention.yaml."""
    return published(PAPER)


def reason(key: str) -> str:
    """Why ours cannot be compared with the paper's `key`; empty where it can."""
    reasons: Mapping[str, str] = published_numbers()["not_comparable"]
    return reasons.get(key, "")


def as_frame(quantities: Iterable[Quantity]) -> pd.DataFrame:
    """A line a quantity, numbers as numbers."""
    lines = []
    for quantity in quantities:
        low, high = _ends(quantity.published)
        lines.append(
            {
                "figure": quantity.figure,
                "quantity": quantity.name,
                "unit": quantity.unit,
                "published_low": low,
                "published_high": high,
                "ours": quantity.ours.mean,
                "ours_ci": quantity.ours.half_width,
                "repetitions": quantity.ours.n,
                "deviation": quantity.deviation,
                "deviation_unit": "points" if quantity.unit == "%" else "%",
                "verdict": verdict(quantity),
                "reason": quantity.reason,
                "note": quantity.note,
            }
        )
    return pd.DataFrame(lines)


def verdict(quantity: Quantity) -> str:
    """Whether the two numbers are of the same thing."""
    return "not comparable" if quantity.reason else "comparable"


HEADS = ("figure", "quantity", "published", "ours", "deviation", "verdict")


def to_markdown(quantities: Sequence[Quantity]) -> str:
    """The table, with the reasons in its last column."""
    lines = [HEADS, ("---", "---", "---:", "---:", "---:", "---")]
    lines += [tuple(cells(quantity, with_reason=True)) for quantity in quantities]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_terminal(quantities: Sequence[Quantity]) -> Table:
    """The table, with a number for each reason, which stands below it."""
    numbers = {text: n for n, text in enumerate(_reasons(quantities), start=1)}
    table = Table(
        *HEADS, box=box.SIMPLE_HEAD, pad_edge=False, title="PagedAttention (SOSP 2023), and here",
        title_justify="left", title_style="bold", caption_justify="left",
    )  # fmt: skip
    for column in table.columns[2:5]:
        column.justify = "right"
    for quantity in quantities:
        shown = [Text(text) for text in cells(quantity, with_reason=False)]
        if quantity.reason:
            shown[-1] = Text(f"{shown[-1]} ({numbers[quantity.reason]})", style="dim")
        table.add_row(*shown)
    table.caption = "\n".join(f"({n}) {text}" for text, n in numbers.items())
    return table


def cells(quantity: Quantity, *, with_reason: bool) -> list[str]:
    """A row's cells in the order of `HEADS`."""
    name = f"{quantity.name} ({quantity.note})" if quantity.note else quantity.name
    said = verdict(quantity)
    if with_reason and quantity.reason:
        said = f"{said}: {quantity.reason}"
    return [
        quantity.figure, name, _published_text(quantity), _ours_text(quantity),
        _deviation_text(quantity), said,
    ]  # fmt: skip


def _reasons(quantities: Iterable[Quantity]) -> list[str]:
    return [text for text in dict.fromkeys(q.reason for q in quantities) if text]


def _ends(value: Published) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _unit(quantity: Quantity) -> str:
    return {"%": " %", "x": "x"}.get(quantity.unit, "")


def _published_text(quantity: Quantity) -> str:
    low, high = _ends(quantity.published)
    finite = [abs(end) for end in (low, high) if math.isfinite(end)]
    digits = 2 if max(finite) < 10 else 1
    if high == math.inf:
        return f"at least {low:.{digits}f}{_unit(quantity)}"
    if low == -math.inf:
        return f"at most {high:.{digits}f}{_unit(quantity)}"
    shown = f"{low:.{digits}f}" if low == high else f"{low:.{digits}f}-{high:.{digits}f}"
    return shown + _unit(quantity)


def _ours_text(quantity: Quantity) -> str:
    mean, half_width, _ = quantity.ours
    if math.isnan(mean):
        return "-"
    digits = 2 if abs(mean) < 10 else 1
    interval = "" if math.isnan(half_width) else f" ±{half_width:.{digits}f}"
    return f"{mean:.{digits}f}{interval}{_unit(quantity)}"


def _deviation_text(quantity: Quantity) -> str:
    value = quantity.deviation
    if math.isnan(value):
        return "-"
    if value == 0 and isinstance(quantity.published, tuple):
        return "within"
    return f"{value:+.1f} points" if quantity.unit == "%" else f"{value:+.0f} %"

"""Azure LLM inference traces: AzurePublicDataset, 2023 (Splitwise, ISCA 2024) and later."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from harness.numbers import shown
from harness.workloads.trace_row import Line, ReadContext, TraceRow, text_lines

HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,12}))? ?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
"""Date and second, digits of its fraction, zone."""


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in order of arrival, seconds from the first line's whole second. A time without a zone
    is in UTC."""
    rows: list[TraceRow] = []
    origin: datetime | None = None
    lines = csv.reader(text_lines(path))
    header = next(lines, None)
    if header is None or tuple(header) != HEADER:
        raise Line(path, 1).malformed(f"header {shown(header)} is not {','.join(HEADER)}")
    for cells in lines:
        line = Line(path, lines.line_num)
        if not cells:
            continue
        if len(cells) != len(HEADER):
            raise line.malformed(f"{len(cells)} fields instead of {len(HEADER)}")
        second, fraction = _timestamp(cells[0], line)
        origin = origin or second
        rows.append(
            TraceRow(
                prompt_len=line.tokens(cells[1], HEADER[1]),
                output_len=line.tokens(cells[2], HEADER[2]),
                arrival_s=(second - origin).total_seconds() + fraction,
            )
        )
    yield from sorted(rows, key=lambda row: row.arrival_s or 0.0)


def _timestamp(text: str, line: Line) -> tuple[datetime, float]:
    """Whole seconds and the fraction, whose seven digits are one more than datetime keeps."""
    found = _TIME.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        whole, digits, zone = found.groups()
        second = datetime.fromisoformat(whole + (zone or "Z"))
        return second.astimezone(UTC), int(digits) / 10 ** len(digits) if digits else 0.0
    except (ValueError, OverflowError):
        raise line.malformed(f"TIMESTAMP={text[:40]!r} is not a time") from None

"""Azure LLM inference traces: AzurePublicDataset, 2023 (Splitwise, ISCA 2024) and later."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from harness.workloads.trace_row import ReadContext, TraceRow, malformed, positive_int

HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in order of arrival, seconds from the first line's whole second."""
    rows: list[TraceRow] = []
    origin: datetime | None = None
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, None)
        if header is None or tuple(header) != HEADER:
            raise malformed(path, 1, f"header {header} is not {','.join(HEADER)}")
        for cells in lines:
            number = lines.line_num
            if not cells:
                continue
            if len(cells) != len(HEADER):
                raise malformed(path, number, f"{len(cells)} fields instead of {len(HEADER)}")
            second, fraction = _timestamp(cells[0], path, number)
            origin = origin or second
            rows.append(
                TraceRow(
                    prompt_len=positive_int(cells[1], path, number, HEADER[1]),
                    output_len=positive_int(cells[2], path, number, HEADER[2]),
                    arrival_s=(second - origin).total_seconds() + fraction,
                )
            )
    yield from sorted(rows, key=lambda row: row.arrival_s or 0.0)


def _timestamp(text: str, path: Path, line: int) -> tuple[datetime, float]:
    """Whole seconds and the fraction, whose seven digits are one more than datetime keeps."""
    text, _, zone = text.partition("+")
    whole, _, digits = text.partition(".")
    try:
        second = datetime.fromisoformat(f"{whole}+{zone}" if zone else whole)
        return second, int(digits) / 10 ** len(digits) if digits else 0.0
    except ValueError:
        raise malformed(path, line, f"TIMESTAMP={text!r} is not a time") from None

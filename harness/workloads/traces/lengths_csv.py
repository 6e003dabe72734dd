"""CSV files of prompt and output lengths without times."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from harness.workloads.trace_row import Line, ReadContext, TraceRow, text_lines

HEADERS = (
    ("prompt_tokens", "output_tokens"),
    ("num_prefill_tokens", "num_decode_tokens"),
)
"""Known pairs of columns; the second is etalon's. Further columns are ignored."""


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in the file's order."""
    lines = csv.DictReader(text_lines(path))
    columns = lines.fieldnames or ()
    known = [pair for pair in HEADERS if set(pair) <= set(columns)]
    if not known:
        choices = " or ".join(",".join(pair) for pair in HEADERS)
        header = ",".join(columns)[:200]
        raise Line(path, 1).malformed(f"header {header!r}: needs the columns {choices}")
    prompt, output = known[0]
    for row in lines:
        line = Line(path, lines.line_num)
        yield TraceRow(line.tokens(row[prompt], prompt), line.tokens(row[output], output))

"""CSV files of prompt and output lengths without times."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from harness.workloads.trace_row import ReadContext, TraceRow, malformed, positive_int

HEADERS = (
    ("prompt_tokens", "output_tokens"),
    ("num_prefill_tokens", "num_decode_tokens"),
)
"""Known pairs of columns; the second is etalon's. Further columns are ignored."""


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in the file's order."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        columns = lines.fieldnames or ()
        known = [pair for pair in HEADERS if set(pair) <= set(columns)]
        if not known:
            choices = " or ".join(",".join(pair) for pair in HEADERS)
            raise malformed(path, 1, f"header {','.join(columns)!r}: needs the columns {choices}")
        prompt, output = known[0]
        for row in lines:
            yield TraceRow(
                prompt_len=positive_int(row[prompt], path, lines.line_num, prompt),
                output_len=positive_int(row[output], path, lines.line_num, output),
            )

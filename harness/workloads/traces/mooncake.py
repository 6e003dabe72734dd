"""Mooncake traces (FAST 2025): arrivals, lengths and prefix hashes of 512-token blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.workloads.trace_row import (
    ReadContext,
    TraceRow,
    integer,
    json_lines,
    malformed,
    positive_int,
)

BLOCK_LEN = 512
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in order of arrival; timestamps are milliseconds."""
    rows = [_row(path, number, row) for number, row in json_lines(path, FIELDS)]
    yield from sorted(rows, key=lambda row: row.arrival_s or 0.0)


def _row(path: Path, line: int, row: object) -> TraceRow:
    assert isinstance(row, dict)
    timestamp, hash_ids = row["timestamp"], row["hash_ids"]
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float):
        raise malformed(path, line, f"timestamp={timestamp!r} is not a number")
    if not isinstance(hash_ids, list):
        raise malformed(path, line, f"hash_ids={hash_ids!r} is not a list")
    prompt_len = positive_int(row["input_length"], path, line, "input_length")
    blocks = -(-prompt_len // BLOCK_LEN)
    if len(hash_ids) != blocks:
        raise malformed(
            path, line,
            f"{len(hash_ids)} hash_ids for input_length={prompt_len}: "
            f"{blocks} blocks of {BLOCK_LEN} are needed",
        )  # fmt: skip
    ids = tuple(integer(block, path, line, "hash_ids") for block in hash_ids)
    if min(ids) < 0:
        raise malformed(path, line, f"hash_ids holds {min(ids)}: ids start at 0")
    return TraceRow(
        prompt_len=prompt_len,
        output_len=positive_int(row["output_length"], path, line, "output_length"),
        arrival_s=timestamp / 1000,
        block_ids=ids,
        block_len=BLOCK_LEN,
    )

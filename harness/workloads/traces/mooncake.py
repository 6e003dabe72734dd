"""Mooncake traces (FAST 2025): arrivals, lengths and prefix hashes of 512-token blocks."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.numbers import shown
from harness.workloads.trace_row import Line, ReadContext, TraceRow, json_lines

BLOCK_LEN = 512
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_LARGEST_ID = 2**64 - 1


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows in order of arrival; timestamps are milliseconds."""
    rows = [_row(line, row) for line, row in json_lines(path, FIELDS)]
    yield from sorted(rows, key=lambda row: row.arrival_s or 0.0)


def _row(line: Line, row: Mapping[str, object]) -> TraceRow:
    timestamp, hash_ids = row["timestamp"], row["hash_ids"]
    if isinstance(timestamp, str):
        raise line.malformed(f"timestamp={shown(timestamp)} is not a number")
    if not isinstance(hash_ids, list):
        raise line.malformed(f"hash_ids={shown(hash_ids)} is not a list")
    prompt_len = line.tokens(row["input_length"], "input_length")
    blocks = -(-prompt_len // BLOCK_LEN)
    if len(hash_ids) != blocks:
        raise line.malformed(
            f"{len(hash_ids)} hash_ids for input_length={prompt_len}: "
            f"{blocks} blocks of {BLOCK_LEN} are needed"
        )
    if set(map(type, hash_ids)) != {int} or not 0 <= min(hash_ids) <= max(hash_ids) <= _LARGEST_ID:
        hash_ids = [line.integer(block, "hash_ids", 0, _LARGEST_ID) for block in hash_ids]
    return TraceRow(
        prompt_len=prompt_len,
        output_len=line.tokens(row["output_length"], "output_length"),
        arrival_s=line.seconds(timestamp, "timestamp", per_second=1000),
        block_ids=array("Q", hash_ids),
        block_len=BLOCK_LEN,
    )

"""Trace formats: every module here with a `read` is one, under the module's name; so is anybody's
`./FILE.py:NAME`.

A module may set NOTE, words for the description, where its rows were not recorded as they are.
"""

from __future__ import annotations

import csv
import importlib
import math
import pkgutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness import own_code
from harness.numbers import shown
from harness.workloads.choices import unknown
from harness.workloads.trace_row import (
    MOST_SECONDS,
    MOST_TOKENS,
    ReadContext,
    Reader,
    TraceRow,
)


class Trace(NamedTuple):
    """rows: that can be replayed, in the reader's order. num_empty: of further ones, which have no
    prompt or were given no output."""

    rows: list[TraceRow]
    num_empty: int


def read_trace(format_name: str, path: Path, context: ReadContext) -> Trace:
    """All of a trace. Raises ValueError, one line that names the file, where it cannot be read as
    `format_name`, has no rows, or is given rows by its reader that are none."""
    read = reader(format_name)
    rows: list[TraceRow] = []
    num_empty = 0
    latest_s = -math.inf
    try:
        for number, row in enumerate(_rows_of(format_name, read, path, context), start=1):
            where = f"{path}: row {number} of {format_name}"
            _check(row, where, rows[-1] if rows else None)
            if row.session is None and row.arrival_s is not None:
                if row.arrival_s < latest_s:
                    raise ValueError(f"{where}: arrives before the row before it")
                latest_s = row.arrival_s
            if row.prompt_len and row.output_len:
                rows.append(row)
            else:
                num_empty += 1
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as {format_name}: {error}") from error
    if not rows:
        empty = f", but for {num_empty:,} without a prompt or an output" if num_empty else ""
        raise ValueError(f"{path}: has no rows{empty}")
    return Trace(rows, num_empty)


def reader(format_name: str) -> Reader:
    """That of a format. ValueError with the nearest names where there is none."""
    if own_code.is_file(format_name):
        own: Reader = own_code.load_function(format_name, "workload.format", "read")
        return own
    known = readers()
    if format_name not in known:
        raise unknown("workload.format", format_name, known)
    return known[format_name]


def readers() -> dict[str, Reader]:
    """`read` of each format that comes with kvarena."""
    modules = (
        (info.name, importlib.import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    )
    return {name: module.read for name, module in modules if hasattr(module, "read")}


def note(format_name: str) -> str:
    """What a format says about its rows, empty for recorded ones."""
    return str(getattr(importlib.import_module(reader(format_name).__module__), "NOTE", ""))


def _rows_of(
    format_name: str, read: Reader, path: Path, context: ReadContext
) -> Iterator[TraceRow]:
    if own_code.is_file(format_name):
        with own_code.blaming(f"workload.format={format_name}", format_name):
            yield from read(path, context)
    else:
        yield from read(path, context)


def _check(row: object, where: str, before: TraceRow | None) -> None:
    """Raise ValueError for what no reader may yield. before: the last one that can be replayed."""
    if not isinstance(row, TraceRow):
        raise ValueError(f"{where} is no TraceRow: {shown(row)}")
    for name in ("prompt_len", "output_len"):
        value = getattr(row, name)
        if type(value) is not int or not 0 <= value <= MOST_TOKENS:
            raise ValueError(f"{where}: {name}={value!r} must be an int from 0 to {MOST_TOKENS:,}")
    arrival_s = row.arrival_s
    is_time = isinstance(arrival_s, int | float) and abs(arrival_s) <= MOST_SECONDS
    if not (is_time or arrival_s is None):
        raise ValueError(f"{where}: arrival_s={arrival_s!r} must be finite seconds")
    if row.block_len and len(row.block_ids) != -(-row.prompt_len // row.block_len):
        raise ValueError(f"{where}: needs one of block_ids for each {row.block_len} tokens")
    for name, ids, count in (
        ("prompt", row.prompt_ids, row.prompt_len),
        ("output", row.output_ids, row.output_len),
    ):
        if ids is not None and len(ids) != count:
            raise ValueError(f"{where}: {len(ids)} {name}_ids for {name}_len={count}")
    if before is not None and _kind(before) != _kind(row):
        raise ValueError(
            f"{where}: has another block_len than others, or text where they have none"
        )


def _kind(row: TraceRow) -> tuple[int, bool, bool]:
    return row.block_len, row.prompt_ids is None, row.output_ids is None

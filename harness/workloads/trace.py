"""The generator that replays a trace."""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.engine.request import Workload
from harness.workloads.arrivals import arrival_times
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.choices import unknown
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context, Place, RequestBuilder
from harness.workloads.describe import arrivals_in_words, bounds_in_words, branches_in_words
from harness.workloads.trace_fit import fit_trace
from harness.workloads.trace_row import ReadContext, Reader, TraceRow
from harness.workloads.trace_scaling import ScaledRow, scale_factor, scale_rows, scaled_limits
from harness.workloads.traces import note, readers

NAME = "trace"


_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def generate(config: WorkloadConfig, context: Context) -> Workload:
    """The rows of `config.path` as requests.

    Rows with prompt + output >= max_len are dropped, and the description says how many; a
    session ends at such a row. Blocks of prefix hashes scale to whole pages, and everything
    else in such a trace by the same factor. What the config leaves open is fitted to
    `context.longest_len`. Of a trace with more than `num_requests`, the seed chooses the
    stretch that is replayed.
    """
    read, path = _reader(config)
    tokenizer = context.tokenizer or ByteTokenizer(config.first_regular_id)
    try:
        whole = list(read(path, ReadContext(context.seed, tokenizer)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as {config.format}: {error}") from error
    fitted = fit_trace(config, whole, context.longest_len)
    kept, num_dropped = select(fitted, whole)
    if not kept:
        raise ValueError(
            f"{path}: none of its requests is left, {num_dropped} have prompt + output >= "
            f"workload.max_len={fitted.max_len}: raise it, or lower workload.start_s="
            f"{config.start_s:g}"
        )
    rows = stretch(kept, config.num_requests, context.seed)
    factor = scale_factor(fitted, rows)
    scaled = list(scale_rows(rows, factor, context))
    builder = RequestBuilder(fitted, context, scaled_limits(fitted, factor, scaled))
    _add_rows(builder, scaled)
    parts = [
        f"{config.format} trace {path.name} {note(str(config.format))}".rstrip(),
        _count_in_words(kept, rows, context.seed),
        f"{num_dropped:,} of {len(whole):,} too long" if num_dropped else "",
        bounds_in_words(fitted, fitted.max_len, factor),
        _fit_in_words(config, fitted, context.longest_len),
        branches_in_words(config),
        _arrivals_in_words(config, rows),
    ]
    return Workload(
        name=config.name,
        requests=tuple(builder.requests),
        description="; ".join(part for part in parts if part),
        closed_loop=config.concurrency if config.arrivals == "closed_loop" else None,
    )


def _reader(config: WorkloadConfig) -> tuple[Reader, Path]:
    known = readers()
    if config.format is None:
        raise ValueError(
            f"workload={config.name} needs a trace: add workload.path=FILE_OR_FOLDER and "
            f"workload.format={'|'.join(sorted(known))}"
        )
    if config.format not in known:
        raise unknown("workload.format", config.format, known)
    if config.path is None:
        raise ValueError(f"workload.format={config.format} needs workload.path=FILE_OR_FOLDER")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise ValueError(f"workload.path={config.path}: no such file or folder")
    if config.sharing != "none":
        raise ValueError(
            f"workload.sharing={config.sharing}: a trace says itself what is shared; "
            "set workload.sharing=none"
        )
    return known[config.format], path


def select(config: WorkloadConfig, rows: Iterable[TraceRow]) -> tuple[list[TraceRow], int]:
    """The rows that may be replayed, and how many were dropped as too long (a session ends
    there)."""
    kept: list[TraceRow] = []
    num_dropped = 0
    origin: float | None = None
    session: str | None = None
    skipped: str | None = None
    for row in rows:
        arrival = row.arrival_s or 0.0
        origin = arrival if origin is None else origin
        if row.session is not None and row.session == skipped:
            continue
        opening = row.session is None or row.session != session
        if opening and arrival - origin < config.start_s:
            skipped = row.session
            continue
        if config.max_len is not None and row.prompt_len + row.output_len >= config.max_len:
            num_dropped += 1
            skipped = row.session
            continue
        session = row.session
        kept.append(row)
    return kept, num_dropped


def stretch(rows: Sequence[TraceRow], num_requests: int | None, seed: int) -> Sequence[TraceRow]:
    """`num_requests` consecutive rows that begin with a session, if any: the first of them for
    seed 0, the next for seed 1, and so on to the trace's end; further seeds begin elsewhere, in an
    order that spreads them. So seeds differ in their lengths."""
    if num_requests is None or num_requests >= len(rows):
        return rows
    last = len(rows) - num_requests
    openings = [index for index in range(last + 1) if _opens(rows, index)]
    apart = [
        openings[bisect_left(openings, min(number * num_requests, openings[-1]))]
        for number in range(_num_apart(rows, num_requests))
    ]
    starts = list(dict.fromkeys(apart))
    if seed >= len(starts):
        between = set(openings).difference(starts)
        starts += sorted(between, key=lambda start: start * _GOLDEN_RATIO % 1.0)
    start = starts[seed % len(starts)]
    return rows[start : start + num_requests]


def _num_apart(rows: Sequence[TraceRow], num_requests: int) -> int:
    """Seeds whose stretches have no row in common, but where a session moves a beginning on."""
    return len(rows) // num_requests


def _count_in_words(kept: Sequence[TraceRow], rows: Sequence[TraceRow], seed: int) -> str:
    if len(rows) == len(kept):
        return f"{len(rows)} requests"
    is_apart = seed < _num_apart(kept, len(rows))
    shared = "" if is_apart else ", some of them of other seeds' too"
    return f"{len(rows)} requests of {len(kept):,}{shared}"


def _arrivals_in_words(config: WorkloadConfig, rows: Sequence[TraceRow]) -> str:
    words = arrivals_in_words(config)
    has_times = all(row.arrival_s is not None for row in rows)
    replaced = has_times and config.arrivals != "trace"
    return f"{words}, not at the trace's own times" if replaced else words


def _fit_in_words(given: WorkloadConfig, fitted: WorkloadConfig, longest_len: int | None) -> str:
    if (given.scale, given.max_len) == (fitted.scale, fitted.max_len):
        return ""
    return f"fitted to requests of {longest_len} tokens"


def _opens(rows: Sequence[TraceRow], index: int) -> bool:
    session = rows[index].session
    return session is None or index == 0 or session != rows[index - 1].session


def _add_rows(builder: RequestBuilder, rows: list[ScaledRow]) -> None:
    """A request a row; turns of a session follow each other by `think_s`."""
    starts = iter(_starts(builder, [row for row in rows if row.opens]))
    session = -1
    for scaled in rows:
        if scaled.opens:
            session += 1
            place = Place(next(starts), session_id=-1 if scaled.session is None else session)
        else:
            place = Place(builder.config.think_s, session, after_request=builder.next_id - 1)
        prompt, output = builder.random_tokens(
            builder.next_id,
            scaled.prompt_len if scaled.prompt_ids is None else 0,
            scaled.output_len if scaled.output_ids is None else 0,
        )
        builder.check_ids(scaled.added, scaled.output_ids or ())
        builder.add(scaled.prompt_ids or tuple(prompt), scaled.output_ids or output, place)


def _starts(builder: RequestBuilder, openings: list[ScaledRow]) -> list[float]:
    """Arrival of each single request and session, from 0."""
    config = builder.config
    if config.arrivals != "trace":
        return [float(t) for t in arrival_times(config, len(openings), builder.context.seed)]
    times = [row.arrival_s for row in openings if row.arrival_s is not None]
    if len(times) != len(openings):
        raise ValueError(
            f"workload.arrivals=trace: format {config.format} has no times; set "
            "workload.arrivals=all_at_once, closed_loop, constant, poisson or gamma"
        )
    return [(time - times[0]) / config.speed_up for time in times]

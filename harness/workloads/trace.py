"""The generator that replays a trace."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.engine.request import Workload
from harness.workloads.arrivals import arrival_times
from harness.workloads.blocks import BlockTokens
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.describe import arrivals_in_words, bounds_in_words, branches_in_words
from harness.workloads.ideal import Ids
from harness.workloads.lazy_requests import LazyRequests, RequestTable
from harness.workloads.limits import Limits
from harness.workloads.streams import Floats
from harness.workloads.trace_fit import fit_trace
from harness.workloads.trace_load import prefixes_in_words, times_in_words
from harness.workloads.trace_row import ReadContext, TraceRow
from harness.workloads.trace_scaling import ScaledRow, scale_factor, scale_rows, scaled_limits
from harness.workloads.traces import note, read_trace, reader, readers

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
    path = _path(config)
    tokenizer = context.tokenizer or ByteTokenizer(config.first_regular_id)
    format_name = str(config.format)
    whole, num_empty = read_trace(format_name, path, ReadContext(context.seed, tokenizer))
    fitted = fit_trace(config, whole, context.longest_len)
    kept, num_dropped = select(fitted, whole)
    if not kept:
        raise ValueError(f"{path}: {_none_left(fitted, len(whole), num_dropped)}")
    rows = stretch(kept, config.num_requests, context.seed)
    factor = scale_factor(fitted, rows)
    scaled = list(scale_rows(rows, factor, context))
    limits = scaled_limits(fitted, factor, scaled)
    requests = _requests(fitted, context, limits, scaled)
    parts = [
        f"{format_name} trace {path.name} {note(format_name)}".rstrip(),
        _count_in_words(kept, rows, context.seed),
        f"{num_empty:,} of {len(whole) + num_empty:,} have no prompt or no output and are left out"
        if num_empty
        else "",
        f"{num_dropped:,} of {len(whole):,} too long" if num_dropped else "",
        bounds_in_words(fitted, fitted.max_len, factor),
        _fit_in_words(config, fitted, context.longest_len),
        branches_in_words(config),
        _arrivals_in_words(config, rows),
        times_in_words(config, requests),
        prefixes_in_words(requests, scaled),
    ]
    return Workload(
        name=config.name,
        requests=requests,
        description="; ".join(part for part in parts if part),
        closed_loop=config.concurrency if config.arrivals == "closed_loop" else None,
    )


def _path(config: WorkloadConfig) -> Path:
    """Of the trace. ValueError for a config that has none, or no format."""
    known = readers()
    if config.format is None:
        raise ValueError(
            f"workload={config.name} needs a trace: add workload.path=FILE_OR_FOLDER and "
            f"workload.format={'|'.join(sorted(known))}, or ./FILE.py:NAME"
        )
    reader(config.format)
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
    return path


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


def _none_left(config: WorkloadConfig, num_rows: int, num_dropped: int) -> str:
    ways_out = []
    if num_dropped:
        ways_out.append(
            f"{num_dropped} have prompt + output >= workload.max_len={config.max_len}: raise it"
        )
    if config.start_s:
        ways_out.append(f"lower workload.start_s={config.start_s:g}")
    return f"none of its {num_rows} requests is left, {', or '.join(ways_out)}"


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


def _requests(
    config: WorkloadConfig, context: Context, limits: Limits, rows: Sequence[ScaledRow]
) -> LazyRequests:
    """A request a row; turns of a session follow each other by `think_s`."""
    opens = np.array([row.opens for row in rows])
    sessions = np.cumsum(opens) - 1
    starts = _starts(config, [row for row in rows if row.opens], context.seed)
    table = RequestTable(
        prompt_lens=np.array([row.prompt_len for row in rows]),
        output_lens=np.array([row.output_len for row in rows]),
        arrivals_s=np.where(opens, starts[sessions], config.think_s),
        after_request=np.where(opens, -1, np.arange(len(rows)) - 1),
        session_id=np.where([row.session is None for row in rows], -1, sessions),
    )
    prompt = output = None
    if rows[0].prompt_ids is not None:
        prompt = lambda index: _listed(rows[index].prompt_ids)  # noqa: E731
        output = lambda index: _listed(rows[index].output_ids)  # noqa: E731
    elif rows[0].block_ids:
        blocks = BlockTokens(context.tokens, rows[0].block_len, (row.block_ids for row in rows))
        prompt = lambda index: blocks.prompt(rows[index].block_ids, rows[index].prompt_len)  # noqa: E731
    return LazyRequests(config, context, limits, table, prompt, output)


def _listed(ids: Ids | None) -> list[int]:
    assert ids is not None
    listed: list[int] = ids.tolist()
    return listed


def _starts(config: WorkloadConfig, openings: Sequence[ScaledRow], seed: int) -> Floats:
    """Arrival of each single request and session, from 0."""
    if config.arrivals != "trace":
        return arrival_times(config, len(openings), seed)
    times = np.array([row.arrival_s for row in openings if row.arrival_s is not None])
    if len(times) != len(openings):
        raise ValueError(
            f"workload.arrivals=trace: format {config.format} has no times; set "
            "workload.arrivals=all_at_once, closed_loop, constant, poisson or gamma"
        )
    starts: Floats = (times - times.min()) / config.speed_up
    return starts

"""The generator that replays a trace."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.engine.request import Workload
from harness.workloads.arrivals import arrival_times
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.choices import unknown
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context, Place, RequestBuilder
from harness.workloads.describe import arrivals_in_words, bounds_in_words
from harness.workloads.trace_row import ReadContext, Reader, TraceRow
from harness.workloads.trace_scaling import TraceScaling, Turn, scaled_turn
from harness.workloads.traces import readers

NAME = "trace"


def generate(config: WorkloadConfig, context: Context) -> Workload:
    """The rows of `config.path` as requests.

    Rows with prompt + output >= max_len are dropped, and the description says how many; a
    session ends at such a row. Blocks of prefix hashes scale to whole pages, and everything
    else in such a trace by the same factor.
    """
    read, path = _reader(config)
    tokenizer = context.tokenizer or ByteTokenizer(config.first_regular_id)
    rows, dropped = select(config, read(path, ReadContext(context.seed, tokenizer)))
    if not rows:
        raise ValueError(
            f"{path}: none of its requests is left, {dropped} have prompt + output >= "
            f"workload.max_len={config.max_len}: raise it, or lower workload.start_s="
            f"{config.start_s:g}"
        )
    scaling = TraceScaling.of(config, context, rows)
    builder = RequestBuilder(config, context, scaling.limits(config, rows))
    _add_rows(builder, scaling, rows)
    parts = [
        f"{config.format} trace {path.name}",
        f"{len(rows)} requests" + (f", {dropped} too long" if dropped else ""),
        bounds_in_words(config, config.max_len, scaling.factor),
        arrivals_in_words(config),
    ]
    return Workload(
        name=config.name,
        requests=tuple(builder.requests),
        description="; ".join(part for part in parts if part),
        closed_loop=config.concurrency if config.arrivals == "closed_loop" else None,
    )


def _reader(config: WorkloadConfig) -> tuple[Reader, Path]:
    known = readers()
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
    """The rows to replay, and how many were dropped as too long (a session ends there)."""
    kept: list[TraceRow] = []
    dropped = 0
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
            dropped += 1
            skipped = row.session
            continue
        session = row.session
        kept.append(row)
        if len(kept) == config.num_requests:
            break
    return kept, dropped


def _add_rows(builder: RequestBuilder, scaling: TraceScaling, rows: list[TraceRow]) -> None:
    """A request a row; turns of a session follow each other by `think_s`."""
    opens = [i == 0 or r.session is None or r.session != rows[i - 1].session
             for i, r in enumerate(rows)]  # fmt: skip
    starts = iter(_starts(builder, [row for row, first in zip(rows, opens, strict=True) if first]))
    session = -1
    turn = Turn()
    for row, first in zip(rows, opens, strict=True):
        if first:
            session += 1
            place = Place(next(starts), session_id=-1 if row.session is None else session)
        else:
            place = Place(builder.config.think_s, session, after_request=builder.next_id - 1)
        if row.prompt_ids is not None:
            turn = scaled_turn(Turn() if first else turn, row, scaling.factor)
            builder.check_ids(turn.added, turn.output_ids)
            builder.add(turn.prompt_ids, turn.output_ids, place)
            continue
        prompt_len, output_len = scaling.prompt_len(row), scaling.output_len(row)
        if scaling.blocks is not None:
            _, output = builder.random_tokens(0, output_len)
            builder.add(scaling.blocks.prompt(row.block_ids, prompt_len), output, place)
        else:
            prompt, output = builder.random_tokens(prompt_len, output_len)
            builder.add(tuple(prompt), output, place)


def _starts(builder: RequestBuilder, openings: list[TraceRow]) -> list[float]:
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

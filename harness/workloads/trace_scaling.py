"""How a trace shrinks to a small model: rows of a trace with scaled lengths and token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from harness.workloads.blocks import scaled_block_len, scaled_prompt_len
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.ideal import Ids
from harness.workloads.limits import Limits, scale_length
from harness.workloads.trace_row import TraceRow


@dataclass(frozen=True, slots=True)
class ScaledRow:
    """One row after scaling; token ids that the trace does not determine are None.

    opens: a single request, or the first of its session. block_ids, block_len: of the prompt,
    empty where it is not known by blocks. prompt_ids: a session's are views of its longest prompt.
    """

    opens: bool
    arrival_s: float | None
    session: str | None
    prompt_len: int
    output_len: int
    block_ids: Sequence[int] = ()
    block_len: int = 0
    prompt_ids: Ids | None = None
    output_ids: Ids | None = None


def scale_factor(config: WorkloadConfig, rows: Sequence[TraceRow]) -> float:
    """The factor on all lengths of the trace.

    A block of prefix hashes scales to a whole number of pages: its factor may differ from
    `length_scale`, and then all lengths of the trace take it. Text cannot be stretched.
    """
    first = rows[0]
    if first.prompt_ids is not None and config.scale > 1:
        raise ValueError(
            f"workload.length_scale={config.scale:g}: text can be cut but not "
            "stretched, give at most 1"
        )
    if not first.block_len:
        return config.scale
    block_len = scaled_block_len(
        first.block_len, config.scale, config.page_multiple, config.block_len
    )
    return block_len / first.block_len


def scale_rows(rows: Sequence[TraceRow], factor: float, context: Context) -> Iterator[ScaledRow]:
    """`rows` with all lengths times `factor`, at least 1."""
    block_len = round(rows[0].block_len * factor)
    for session in _sessions(rows):
        texts = _scaled_texts(session, factor, context)
        for index, row in enumerate(session):
            opens, arrival_s, name = index == 0, row.arrival_s, row.session
            output_len = scale_length(row.output_len, factor)
            if texts:
                ids, output_ids = texts[index], np.asarray(row.output_ids)[:output_len]
                yield ScaledRow(
                    opens, arrival_s, name, len(ids), output_len, (), 0, ids, output_ids
                )
            elif row.block_ids:
                length = scaled_prompt_len(row.prompt_len, row.block_len, block_len)
                yield ScaledRow(
                    opens, arrival_s, name, length, output_len, row.block_ids, block_len
                )
            else:
                length = scale_length(row.prompt_len, factor)
                yield ScaledRow(opens, arrival_s, name, length, output_len)


def _sessions(rows: Sequence[TraceRow]) -> Iterator[list[TraceRow]]:
    """Rows by session, a request without one by itself."""
    for session, turns in groupby(rows, key=lambda row: row.session):
        if session is None:
            yield from ([turn] for turn in turns)
        else:
            yield list(turns)


def _scaled_texts(turns: Sequence[TraceRow], factor: float, context: Context) -> list[Ids]:
    """Of each turn the prompt: that of the turn before, and the head of what it adds to it, at
    least one token. Empty where the trace has no text."""
    if turns[0].prompt_ids is None:
        return []
    parts: list[Ids] = []
    scaled_lens: list[int] = []
    scaled_len = unscaled_len = 0
    for row in turns:
        assert row.prompt_ids is not None and row.output_ids is not None
        grown = max(1, scale_length(row.prompt_len, factor) - scaled_len)
        parts.append(np.asarray(row.prompt_ids)[unscaled_len:][:grown])
        context.tokens.check(parts[-1])
        context.tokens.check(np.asarray(row.output_ids))
        scaled_len += len(parts[-1])
        unscaled_len = row.prompt_len
        scaled_lens.append(scaled_len)
    ids = np.concatenate(parts)
    return [ids[:length] for length in scaled_lens]


def scaled_limits(config: WorkloadConfig, factor: float, rows: Sequence[ScaledRow]) -> Limits:
    """The config's bounds, scaled; without max_len the longest of `rows` is the bound."""
    if config.max_len is not None:
        bound = scale_length(config.max_len, factor)
    else:
        bound = max(row.prompt_len + row.output_len for row in rows)
    return Limits.of(config, bound, factor)

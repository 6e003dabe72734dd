"""How a trace shrinks to a small model: rows of a trace with scaled lengths and token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.workloads.blocks import BlockTokens, scaled_block_len, scaled_prompt_len
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.limits import Limits, scale_length
from harness.workloads.trace_row import TraceRow


@dataclass(frozen=True, slots=True)
class ScaledRow:
    """One row after scaling; token ids that the trace does not determine are None.

    opens: a single request, or the first of its session. added: what a turn of text adds to
    the prompt before.
    """

    opens: bool
    arrival_s: float | None
    session: str | None
    prompt_len: int
    output_len: int
    prompt_ids: tuple[int, ...] | None = None
    output_ids: tuple[int, ...] | None = None
    added: tuple[int, ...] = ()


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
    blocks = BlockTokens(context.tokens, round(rows[0].block_len * factor))
    session: str | None = None
    turn = _Turn()
    for row in rows:
        opens = row.session is None or row.session != session
        session = row.session
        output_len = scale_length(row.output_len, factor)
        if row.prompt_ids is not None and row.output_ids is not None:
            turn = _scaled_turn(_Turn() if opens else turn, row, row.prompt_ids, factor)
            ids, output_ids, added = turn.prompt_ids, row.output_ids[:output_len], turn.added
            yield ScaledRow(
                opens, row.arrival_s, session, len(ids), output_len, ids, output_ids, added
            )
        elif row.block_ids:
            length = scaled_prompt_len(row.prompt_len, row.block_len, blocks.block_len)
            ids = blocks.prompt(row.block_ids, length)
            yield ScaledRow(opens, row.arrival_s, session, length, output_len, ids)
        else:
            length = scale_length(row.prompt_len, factor)
            yield ScaledRow(opens, row.arrival_s, session, length, output_len)


def scaled_limits(config: WorkloadConfig, factor: float, rows: Sequence[ScaledRow]) -> Limits:
    """The config's bounds, scaled; without max_len the longest of `rows` is the bound."""
    if config.max_len is not None:
        bound = scale_length(config.max_len, factor)
    else:
        bound = max(row.prompt_len + row.output_len for row in rows)
    return Limits.of(config, bound, factor)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A session's prompt so far, what the last turn added, and its length unscaled."""

    prompt_ids: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    unscaled_len: int = 0


def _scaled_turn(before: _Turn, row: TraceRow, prompt_ids: tuple[int, ...], factor: float) -> _Turn:
    """The turn after `before`: keeps the head of what it adds, at least one token of it."""
    grown = max(1, scale_length(row.prompt_len, factor) - len(before.prompt_ids))
    added = prompt_ids[before.unscaled_len :][:grown]
    return _Turn((*before.prompt_ids, *added), added, row.prompt_len)

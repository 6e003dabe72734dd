"""How the lengths of a trace shrink to a small model."""

from __future__ import annotations

from dataclasses import dataclass

from harness.workloads.blocks import BlockTokens, scaled_block_len, scaled_prompt_len
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.limits import Limits, scale_length
from harness.workloads.trace_row import TraceRow


@dataclass(frozen=True, slots=True)
class TraceScaling:
    """The factor on all lengths; where prompts come in blocks, the one that blocks got.

    A block scales to a whole number of pages, so the factor may differ from `length_scale`.
    """

    factor: float
    blocks: BlockTokens | None

    @classmethod
    def of(cls, config: WorkloadConfig, context: Context, rows: list[TraceRow]) -> TraceScaling:
        """By the config and the trace's own blocks. Text cannot be stretched: ValueError."""
        first = rows[0]
        if first.prompt_ids is not None and config.length_scale > 1:
            raise ValueError(
                f"workload.length_scale={config.length_scale:g}: text can be cut but not "
                "stretched, give at most 1"
            )
        if not first.block_len:
            return cls(config.length_scale, None)
        block_len = scaled_block_len(
            first.block_len, config.length_scale, config.page_multiple, config.block_len
        )
        return cls(block_len / first.block_len, BlockTokens(context.tokens, block_len))

    def prompt_len(self, row: TraceRow) -> int:
        """Scaled prompt, at least 1."""
        if self.blocks is not None:
            return scaled_prompt_len(row.prompt_len, row.block_len, self.blocks.block_len)
        return scale_length(row.prompt_len, self.factor)

    def output_len(self, row: TraceRow) -> int:
        """Scaled output, at least 1."""
        return scale_length(row.output_len, self.factor)

    def limits(self, config: WorkloadConfig, rows: list[TraceRow]) -> Limits:
        """The config's bounds, scaled; without max_len the longest of `rows` is the bound."""
        if config.max_len is not None:
            bound = scale_length(config.max_len, self.factor)
        else:
            bound = max(self.prompt_len(row) + self.output_len(row) for row in rows)
        return Limits.of(config, bound, self.factor)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a session in text: scaled tokens, and how long its prompt was unscaled."""

    prompt_ids: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    unscaled_len: int = 0


def scaled_turn(before: Turn, row: TraceRow, scale: float) -> Turn:
    """The turn after `before`: keeps the head of what it adds, at least one token of it."""
    assert row.prompt_ids is not None and row.output_ids is not None
    grown = max(1, scale_length(row.prompt_len, scale) - len(before.prompt_ids))
    added = row.prompt_ids[before.unscaled_len :][:grown]
    return Turn(
        prompt_ids=(*before.prompt_ids, *added),
        added=added,
        output_ids=row.output_ids[: scale_length(row.output_len, scale)],
        unscaled_len=row.prompt_len,
    )

"""The largest step that a run may ask of its device, to measure what it takes beside the pool."""

from __future__ import annotations

from harness.config import RunConfig
from harness.engine.device.model_shape import ModelShape
from harness.engine.plan import Chunk, StepPlan, TableUpdate
from harness.engine.request import SamplingParams


def most_tokens(config: RunConfig, longest_len: int) -> int:
    """Tokens that a step computes at most. longest_len: of any sequence; where prompts are not
    split, one that is longer than the budget is computed alone."""
    engine = config.engine
    if engine.schedule == "mixed_chunked":
        return engine.token_budget
    return max(engine.token_budget, longest_len)


def most_samples(config: RunConfig) -> int:
    """Rows that a step takes logits of at most: one a sequence and one for each draft."""
    return min(config.engine.max_num_seqs * (1 + _num_drafts(config)), config.engine.token_budget)


def largest_step(config: RunConfig, shape: ModelShape, longest_len: int) -> StepPlan:
    """`most_tokens` prompt tokens in as many sequences as `engine.max_num_seqs` allows, all of
    which want logits and a token chosen as the workload chooses its tokens.

    All sequences lie on the same pages, of which `pages_of` are enough: what the
    step computes is of no use, and the pool is as small as can be.
    """
    num_seqs = max(1, most_samples(config) // (1 + _num_drafts(config)))
    each, more = divmod(most_tokens(config, longest_len), num_seqs)
    lens = [min(each + (seq < more), shape.max_positions) for seq in range(num_seqs)]
    sampling = SamplingParams(
        config.workload.temperature, config.workload.top_k, config.workload.top_p
    )
    beams = config.workload.beam_width
    pages = tuple(range(-(-max(lens) // config.kv.page_size)))
    chunks = tuple(
        Chunk(
            seq,
            0,
            (0,) * length,
            draws=() if beams > 1 else (sampling,),
            num_candidates=2 * beams if beams > 1 else 0,
            num_drafts=min(_num_drafts(config), length - 1),
        )
        for seq, length in enumerate(lens)
    )
    return StepPlan(chunks, tuple(TableUpdate(seq, 0, pages) for seq in range(num_seqs)))


def pages_of(step: StepPlan) -> int:
    """Pages that `largest_step` lies on."""
    return len(step.table_updates[0].page_ids)


def _num_drafts(config: RunConfig) -> int:
    speculation = config.engine.speculation
    return 0 if speculation.method == "none" else speculation.num_tokens

"""What a step has to do, as counts: all that a cost model may look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.engine.device.model_shape import LayerGroup
from harness.engine.plan import Chunk, DraftChunk, DraftPlan, StepPlan
from harness.engine.request import SamplingParams


class StepWork(NamedTuple):
    """One step, or one pass of a draft model.

    num_tokens: rows of the linear layers. num_sequences: chunks; num_prompts: those of more than
    one token. decode_*: of chunks of one token; prompt_*: of the others. *_pages: pages of KV
    read, each of one group of layers, once a chunk. *_pairs: queries times the keys that each
    reads, in all layers. num_logits: positions whose logits are wanted; num_drawn: tokens that are
    drawn from them at random, num_beams: chunks that want candidates. num_copied: pages copied.
    num_moved: pages saved to the host or restored from it. num_updates: changes of a block table.
    num_freed: sequences whose row is given back. draft: the draft model's passes.
    """

    num_tokens: int = 0
    num_sequences: int = 0
    num_prompts: int = 0
    decode_pages: int = 0
    decode_pairs: int = 0
    prompt_pages: int = 0
    prompt_pairs: int = 0
    num_logits: int = 0
    num_drawn: int = 0
    num_beams: int = 0
    num_copied: int = 0
    num_moved: int = 0
    num_updates: int = 0
    num_freed: int = 0
    draft: tuple[StepWork, ...] = ()


class WorkCounts(NamedTuple):
    """`StepWork` as one row of numbers: a draft model's passes are added up."""

    num_tokens: int = 0
    num_sequences: int = 0
    num_prompts: int = 0
    decode_pages: int = 0
    decode_pairs: int = 0
    prompt_pages: int = 0
    prompt_pairs: int = 0
    num_logits: int = 0
    num_drawn: int = 0
    num_beams: int = 0
    num_copied: int = 0
    num_moved: int = 0
    num_updates: int = 0
    num_freed: int = 0
    draft_passes: int = 0
    draft_tokens: int = 0
    draft_pairs: int = 0

    @classmethod
    def of(cls, work: StepWork) -> WorkCounts:
        """The row of `work`."""
        draft = work.draft
        if not draft:
            return cls(*work[:-1])
        tokens = sum([each.num_tokens for each in draft])
        pairs = sum([each.decode_pairs + each.prompt_pairs for each in draft])
        return cls(*work[:-1], len(draft), tokens, pairs)


class WorkCounter:
    """Counts the work of plans for one model. groups: the layers that have pages of their own.
    draft: counts for the draft model, whose pages are as large. draws_at_random: tokens are
    sampled, not the likeliest."""

    def __init__(
        self,
        page_size: int,
        groups: Sequence[LayerGroup],
        draft: WorkCounter | None = None,
        *,
        draws_at_random: bool = False,
    ) -> None:
        self._draws_at_random = draws_at_random
        self._page_size = page_size
        self._groups = groups
        self._num_layers = sum(len(group.layers) for group in groups)
        self._is_plain = len(groups) == 1 and groups[0].window is None
        self._draft = draft

    def count(self, plan: StepPlan) -> StepWork:
        """The work of `plan`. A step in which every chunk is one token takes the shortest way:
        a simulated run does little else."""
        chunks = plan.chunks
        num = len(chunks)
        if self._is_plain and sum([len(chunk[2]) for chunk in chunks]) == num:
            size = self._page_size
            starts = [chunk[1] for chunk in chunks]
            pages = sum([start // size for start in starts]) + num
            pairs = (sum(starts) + num) * self._num_layers
            logits, beams = num - [chunk[3] for chunk in chunks].count(()), 0
            if logits < num:
                beams = sum([chunk[5] > 0 for chunk in chunks])
                logits += beams
            attention = (num, num, 0, pages, pairs, 0, 0, logits, self._drawn(chunks), beams)
        else:
            attention = self._count_chunks(chunks)
        moved = len(plan.saves) + len(plan.restores)
        return StepWork(
            *attention,
            len(plan.copies),
            moved,
            len(plan.table_updates),
            len(plan.freed_seq_ids),
            () if plan.draft is None else self._count_draft(plan.draft),
        )

    def _count_chunks(
        self, chunks: Sequence[Chunk]
    ) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        size = self._page_size
        pages, pairs = [0, 0], [0, 0]
        tokens = prompts = logits = 0
        for chunk in chunks:
            start, count = chunk.start, len(chunk.token_ids)
            several = count > 1
            tokens += count
            prompts += several
            logits += _num_logits(chunk)
            last = (start + count - 1) // size
            for window, layers in self._groups:
                first = 0 if window is None else max(0, start - window + 1)
                pages[several] += last - first // size + 1
                pairs[several] += num_pairs(start, count, window) * len(layers)
        drawn, beams = self._drawn(chunks), sum(chunk.num_candidates > 0 for chunk in chunks)
        attention = (pages[0], pairs[0], pages[1], pairs[1])
        return tokens, len(chunks), prompts, *attention, logits, drawn, beams

    def _drawn(self, chunks: Sequence[Chunk]) -> int:
        if not self._draws_at_random:
            return 0
        return sum([len(chunk[3]) + chunk[6] for chunk in chunks])

    def _count_draft(self, plan: DraftPlan) -> tuple[StepWork, ...]:
        """The draft model's passes: in the first it computes what it lacks, in each its next
        draft; copies and tables are of the first."""
        if self._draft is None:
            return ()
        copied, updated, freed = map(len, (plan.copies, plan.table_updates, plan.freed_seq_ids))
        passes = [self._draft.count(StepPlan(step)) for step in _draft_passes(plan.chunks)]
        if not passes and copied + updated + freed:
            passes = [StepWork()]
        if passes:
            passes[0] = passes[0]._replace(num_copied=copied, num_updates=updated, num_freed=freed)
        return tuple(passes)


_ONE_DRAW = (SamplingParams(),)


def _draft_passes(chunks: Sequence[DraftChunk]) -> Iterator[tuple[Chunk, ...]]:
    """What each pass computes: sequences that want more drafts than there were passes."""
    for turn in range(max((chunk.num_drafts for chunk in chunks), default=0)):
        yield tuple(
            Chunk(chunk.seq_id, chunk.start, chunk.token_ids, _ONE_DRAW)
            if turn == 0
            else Chunk(chunk.seq_id, chunk.start + len(chunk.token_ids) + turn - 1, (0,), _ONE_DRAW)
            for chunk in chunks
            if chunk.num_drafts > turn
        )


def num_pairs(start: int, count: int, window: int | None) -> int:
    """Queries at positions start to start + count - 1 times the keys that each reads: all up to
    its own position, or the last `window` of them."""
    if window is None or start + count <= window:
        return count * start + count * (count + 1) // 2
    growing = max(0, window - start)  # queries before which there is less than a window
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * window


def _num_logits(chunk: Chunk) -> int:
    """Positions whose logits are wanted."""
    if chunk.num_drafts:
        return chunk.num_drafts + 1
    return 1 if chunk.draws or chunk.num_candidates else 0

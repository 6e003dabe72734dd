"""Counts of a step's work against looking at every query, key and page."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.engine.cost.step_work import StepWork, WorkCounter, num_pairs
from harness.engine.device.model_shape import LayerGroup
from harness.engine.plan import Chunk, DraftChunk, DraftPlan, StepPlan, TableUpdate
from harness.engine.request import SamplingParams

DRAW = (SamplingParams(),)
FULL = (LayerGroup(None, (0, 1)),)
ALTERNATING = (LayerGroup(None, (0, 2)), LayerGroup(7, (1, 3)))


@dataclass
class Counted:
    """What brute force finds, of chunks of one token and of others."""

    pages: int = 0
    pairs: int = 0


def brute_force(chunk: Chunk, page_size: int, groups: tuple[LayerGroup, ...]) -> Counted:
    counted = Counted()
    for window, layers in groups:
        read: set[int] = set()
        for query in range(chunk.start, chunk.start + len(chunk.token_ids)):
            keys = [key for key in range(query + 1) if window is None or key > query - window]
            counted.pairs += len(keys) * len(layers)
            read |= {key // page_size for key in keys}
        counted.pages += len(read)
    return counted


def chunk(start: int, count: int, **more: object) -> Chunk:
    return Chunk(0, start, list(range(count)), **{"draws": DRAW, **more})  # type: ignore[arg-type]


CHUNKS = st.lists(
    st.builds(
        chunk,
        st.integers(0, 30),
        st.one_of(st.just(1), st.integers(1, 12)),
        draws=st.sampled_from([(), DRAW, DRAW * 3]),
    ),
    max_size=6,
)


@given(CHUNKS, st.integers(1, 5), st.sampled_from([FULL, ALTERNATING, ALTERNATING[1:]]))
def test_work_is_what_looking_at_every_key_finds(
    chunks: list[Chunk], page_size: int, groups: tuple[LayerGroup, ...]
) -> None:
    work = WorkCounter(page_size, groups).count(StepPlan(tuple(chunks)))
    one = [c for c in chunks if len(c.token_ids) == 1]
    several = [c for c in chunks if len(c.token_ids) > 1]
    assert work.num_tokens == sum(len(c.token_ids) for c in chunks)
    assert (work.num_sequences, work.num_prompts) == (len(chunks), len(several))
    assert work.num_logits == sum(bool(c.draws) for c in chunks)
    for some, pages, pairs in (
        (one, work.decode_pages, work.decode_pairs),
        (several, work.prompt_pages, work.prompt_pairs),
    ):
        found = [brute_force(c, page_size, groups) for c in some]
        assert pages == sum(f.pages for f in found)
        assert pairs == sum(f.pairs for f in found)


@given(st.integers(0, 40), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 30)))
def test_pairs_are_what_counting_gives(start: int, count: int, window: int | None) -> None:
    read = [min(position + 1, window or 1000) for position in range(start, start + count)]
    assert num_pairs(start, count, window) == sum(read)


def test_drafts_and_beams_want_logits_of_their_own() -> None:
    counter = WorkCounter(4, FULL)
    drafted = counter.count(StepPlan((chunk(9, 4, num_drafts=3), chunk(3, 1))))
    assert drafted.num_logits == 4 + 1
    beam = counter.count(StepPlan((chunk(9, 1, draws=(), num_candidates=8), chunk(3, 1, draws=()))))
    assert (beam.num_logits, beam.num_beams, drafted.num_beams) == (1, 1, 0)


def test_tokens_are_drawn_where_they_are_sampled() -> None:
    plans = [
        StepPlan((chunk(9, 1), chunk(3, 1))),
        StepPlan((chunk(0, 5, draws=DRAW * 3), chunk(3, 1))),
        StepPlan((chunk(3, 1, draws=DRAW * 2), chunk(0, 5, draws=()))),
        StepPlan((chunk(9, 4, num_drafts=3),)),
    ]
    sampled = WorkCounter(4, FULL, draws_at_random=True)
    assert [sampled.count(plan).num_drawn for plan in plans] == [2, 4, 2, 4]
    assert all(WorkCounter(4, FULL).count(plan).num_drawn == 0 for plan in plans)


def test_what_moves_is_counted() -> None:
    pairs = (PageCopy(0, 1), PageCopy(2, 3))
    updates = (TableUpdate(0, 0, (1, 2)),)
    plan = StepPlan((), updates, (4, 5, 6), copies=pairs, saves=pairs, restores=pairs[:1])
    work = WorkCounter(4, FULL).count(plan)
    assert (work.num_copied, work.num_moved, work.num_updates, work.num_freed) == (2, 3, 1, 3)


def test_a_draft_model_passes_once_a_draft() -> None:
    """Of two sequences one wants three drafts: two passes are shared, the last is its own."""
    drafts = DraftPlan(
        (
            DraftChunk(0, 5, [1, 2, 3], 3, DRAW[0], 4),
            DraftChunk(1, 9, [1], 2, DRAW[0], 2),
        ),
        (),
        (7,),
        (PageCopy(0, 1),),
        (),
    )
    counter = WorkCounter(4, FULL, WorkCounter(4, (LayerGroup(None, (0,)),)))
    first, second, third = counter.count(StepPlan((chunk(7, 4),), draft=drafts)).draft
    assert (first.num_tokens, first.num_prompts, first.num_logits) == (4, 1, 2)
    assert (first.num_copied, first.num_freed, second.num_copied) == (1, 1, 0)
    assert first.decode_pairs == 10 and first.prompt_pairs == 6 + 7 + 8
    assert (second.num_tokens, second.decode_pairs) == (2, 9 + 11)
    assert (third.num_tokens, third.decode_pairs, third.num_logits) == (1, 10, 1)


def test_a_draft_pool_s_copies_count_without_a_pass() -> None:
    counter = WorkCounter(4, FULL, WorkCounter(4, FULL))
    alone = DraftPlan((), (), (), (PageCopy(0, 1),), ())
    assert counter.count(StepPlan((), draft=alone)).draft == (StepWork(num_copied=1),)
    assert counter.count(StepPlan((), draft=DraftPlan((), (), (), (), ()))).draft == ()

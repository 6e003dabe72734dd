"""What a follower decodes is what the leader's batch builder built."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.engine.device.batch import BatchBuilder
from harness.engine.device.parallel.step_message import StepMessage, StepReader, encode
from harness.engine.plan import Chunk, TableUpdate
from harness.engine.request import SamplingParams

GREEDY = SamplingParams()


@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([1, 4, 16]), groups=st.integers(1, 3))
def test_batches_arrive_as_they_were_built(seed: int, page_size: int, groups: int) -> None:
    rng = random.Random(seed)
    size = (6, 40, page_size, groups)
    builder, reader = BatchBuilder(*size), StepReader(*size)
    builder.changes = []
    lens: dict[int, int] = {}
    next_id = 0
    for _ in range(rng.randrange(1, 12)):
        gone = [seq for seq in lens if rng.random() < 0.2]
        for seq in gone:
            del lens[seq]
        builder.free(gone)
        while len(lens) < 6 and rng.random() < 0.6:
            lens[next_id] = 0
            next_id += 1
        chunks = []
        for seq, computed in lens.items():
            count = min(rng.randrange(1, 9), 40 - computed)
            if not count:
                continue
            for group in range(groups):
                first = -(-computed // page_size)
                pages = range(first, -(-(computed + count) // page_size))
                ids = [rng.randrange(2**20) for _ in pages]
                builder.update([TableUpdate(seq, first, ids, group)])
            draws = (GREEDY,) if rng.random() < 0.7 else ()
            tokens = [rng.randrange(2**31) for _ in range(count)]
            chunks.append(Chunk(seq, computed, tokens, draws))
            lens[seq] += count
        batch = builder.build(tuple(chunks)) if chunks else None
        moves = [PageCopy(rng.randrange(99), rng.randrange(99)) for _ in range(rng.randrange(4))]
        sent = StepMessage(batch, *builder.take_changes(), moves, moves[1:], moves[2:])
        got = reader.decode(encode(sent))
        assert (got.saves, got.copies, got.restores) == (moves, moves[1:], moves[2:])
        assert (got.batch is None) == (batch is None)
        if batch is None or got.batch is None:
            continue
        pages_of = [-(-int(n) // page_size) for n in batch.seq_lens]
        for name, mine, theirs in zip(batch._fields, batch, got.batch, strict=True):
            if name == "block_table":  # beyond a sequence's end there may lie anything
                for row, count in enumerate(pages_of):
                    assert np.array_equal(mine[:, row, :count], theirs[:, row, :count])
            else:
                assert np.array_equal(mine, theirs), name
                assert np.asarray(mine).dtype == np.asarray(theirs).dtype, name


def test_a_decode_step_is_small() -> None:
    """A row of a block table travels once, not at every step."""
    builder = BatchBuilder(64, 4096, 16)
    builder.changes = []
    builder.update(TableUpdate(seq, 0, list(range(256))) for seq in range(64))
    chunks = tuple(Chunk(seq, 4000, [5], (GREEDY,), 1) for seq in range(64))
    sizes = []
    for _ in range(2):
        message = StepMessage(builder.build(chunks), *builder.take_changes())
        sizes.append(encode(message).nbytes)
    assert sizes[0] > 4 * 64 * 256
    assert sizes[1] < 32 * 64


def test_ids_that_do_not_fit_are_not_cut() -> None:
    builder = BatchBuilder(1, 4, 4)
    builder.changes = []
    builder.update([TableUpdate(0, 0, [2**30])])
    batch = builder.build((Chunk(0, 0, [1], (GREEDY,)),))
    with pytest.raises(OverflowError, match="slot 4294967296"):
        encode(StepMessage(batch, *builder.take_changes()))

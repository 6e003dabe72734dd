from __future__ import annotations

import random

import numpy as np
import pytest

from harness.engine.device.batch import BatchBuilder
from harness.engine.plan import Chunk, TableUpdate
from harness.engine.request import SamplingParams

GREEDY = SamplingParams()


def _chunk(seq_id: int, start: int, tokens: list[int], samples: bool = True) -> Chunk:
    return Chunk(seq_id, start, tokens, (GREEDY,) if samples else ())


def test_a_prefill_chunk_beside_a_decode() -> None:
    builder = BatchBuilder(max_seqs=2, max_len=32, page_size=4)
    builder.update([TableUpdate(7, 0, [5, 2]), TableUpdate(9, 0, [0, 8, 3])])
    batch = builder.build((_chunk(9, 9, [41]), _chunk(7, 2, [10, 11, 12], samples=False)))
    assert batch.input_ids.tolist() == [41, 10, 11, 12]
    assert batch.positions.tolist() == [9, 2, 3, 4]
    assert batch.slot_mapping.tolist() == [[3 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3, 2 * 4]]
    assert batch.query_start_loc.tolist() == [0, 1, 4]
    assert batch.seq_lens.tolist() == [10, 5]
    assert batch.block_table[0, :, :2].tolist() == [[0, 8], [5, 2]]
    assert batch.block_table.shape == (1, 2, 3)
    assert batch.sample_rows.tolist() == [0]
    assert batch.max_query_len == 3


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_lowering_equals_a_token_by_token_walk(page_size: int, num_groups: int) -> None:
    rng = random.Random(page_size)
    builder = BatchBuilder(8, 96, page_size, num_groups)
    tables: dict[int, list[list[int]]] = {}
    for step in range(60):
        freed = rng.sample(sorted(tables), k=min(len(tables), rng.randrange(3)))
        for seq_id in freed:
            del tables[seq_id]
        builder.free([*freed, 10_000 + step])
        if len(tables) < 8:
            tables[step] = [[] for _ in range(num_groups)]
        for seq_id, of_groups in tables.items():
            first = min(rng.randrange(len(of_groups[0]) + 1), -(-96 // page_size) - 1)
            count = rng.randrange(1, -(-96 // page_size) - first + 3)
            for group, table in enumerate(of_groups):
                table[first:] = [rng.randrange(500) for _ in range(count)]
                builder.update([TableUpdate(seq_id, first, table[first:], group)])
        chunks = []
        for seq_id, of_groups in tables.items():
            covered = min(len(of_groups[0]) * page_size, 96)
            start = rng.randrange(covered)
            count = rng.randrange(1, covered - start + 1)
            chunks.append(_chunk(seq_id, start, list(range(count)), rng.random() < 0.5))
        batch = builder.build(tuple(chunks))
        for group in range(num_groups):
            walked = [
                tables[c.seq_id][group][p // page_size] * page_size + p % page_size
                for c in chunks
                for p in range(c.start, c.start + len(c.token_ids))
            ]
            assert batch.slot_mapping[group].tolist() == walked
            for row, chunk in enumerate(chunks):
                pages = -(-int(batch.seq_lens[row]) // page_size)
                table = batch.block_table[group, row, :pages].tolist()
                assert table == tables[chunk.seq_id][group][:pages]
        ends = np.cumsum([len(c.token_ids) for c in chunks]) - 1
        assert batch.sample_rows.tolist() == [
            int(end) for end, c in zip(ends, chunks, strict=True) if c.draws
        ]


def test_a_token_without_a_page_is_an_error() -> None:
    builder = BatchBuilder(max_seqs=2, max_len=32, page_size=4)
    builder.update([TableUpdate(0, 0, [1]), TableUpdate(1, 0, [2])])
    with pytest.raises(ValueError, match="sequence 1 has no page for position 4"):
        builder.build((_chunk(0, 0, [1, 2]), _chunk(1, 3, [1, 2])))


def test_a_freed_row_forgets_its_table() -> None:
    builder = BatchBuilder(max_seqs=1, max_len=8, page_size=4)
    builder.update([TableUpdate(0, 0, [1, 2])])
    builder.free([0])
    builder.update([TableUpdate(1, 0, [3])])
    with pytest.raises(ValueError, match="no page for position 4"):
        builder.build((_chunk(1, 4, [1]),))


def test_too_many_sequences_name_the_limit() -> None:
    builder = BatchBuilder(max_seqs=1, max_len=8, page_size=4)
    builder.update([TableUpdate(0, 0, [1])])
    with pytest.raises(ValueError, match=r"all 1 are taken: raise engine\.max_num_seqs"):
        builder.update([TableUpdate(1, 0, [1])])

"""What the Triton attention kernels alone do: tiles, pieces and their join, 64-bit addresses.

Interpreted where there is no GPU, with tiles of 16 so that small contexts have several.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import Batch, Shape, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.tuning import AttentionTuning, DecodeTuning, PrefillTuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = 16


def tiles_of_16(split: int | None, least_tokens: int = TILE, block_m: int = 16) -> AttentionTuning:
    decode = DecodeTuning(TILE, 4, 3, 2, least_tokens)
    return AttentionTuning(decode, PrefillTuning(block_m, TILE, 4, 2), split)


def on_device(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments]


def paged(batch: Batch, tuning: AttentionTuning | None, **options: Any) -> torch.Tensor:
    """Paged attention of a batch, on the CPU again; its output is NaN until written."""
    from kernels import triton_attention

    out = batch.outside().to(DEVICE)
    given = {"scale": batch.query.shape[2] ** -0.5, "tuning": tuning, "out": out} | options
    return triton_attention.paged_attention(*on_device(tuple(batch)), **given).cpu()


def contiguous(batch: Batch, tuning: AttentionTuning | None, **options: Any) -> torch.Tensor:
    from kernels import triton_attention

    out = batch.outside().to(DEVICE)
    given = {"scale": batch.query.shape[2] ** -0.5, "tuning": tuning, "out": out} | options
    return triton_attention.contiguous_attention(*on_device(batch.contiguous()), **given).cpu()


def expected(batch: Batch, **options: Any) -> torch.Tensor:
    return reference.paged_attention(*batch, scale=batch.query.shape[2] ** -0.5, **options)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page_size", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_every_page_size(page_size: int) -> None:
    """Pages within a tile, as large as one, and larger; decodes beside chunks."""
    batch = make_batch([(1, 40), (7, 23), (1, 17)], Shape(page_size=page_size))
    assert_close(paged(batch, tiles_of_16(3)), expected(batch))


@pytest.mark.parametrize("window", [None, 1, TILE, TILE + 1, 37])
@pytest.mark.parametrize("page_size", [1, 64])
def test_contexts_at_the_edges_of_tiles_and_pieces(page_size: int, window: int | None) -> None:
    edges = [TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE, 3 * TILE + 1]
    for queries in (1, 2):
        batch = make_batch([(queries, n) for n in edges], Shape(page_size=page_size), window=window)
        right = expected(batch, window=window)
        for pieces_of_tiles in (1, 2):
            tuning = tiles_of_16(-(-13 // pieces_of_tiles))  # 13 tiles without a window
            assert_close(paged(batch, tuning, window=window), right)
        assert_close(contiguous(batch, tuning, window=window), right)


@pytest.mark.parametrize("least_tokens", [TILE, 3 * TILE])
@pytest.mark.parametrize("split", [1, 2, 5, 40])
def test_result_does_not_depend_on_the_pieces(split: int, least_tokens: int) -> None:
    """One sequence much longer than the others, empty ones between them."""
    batch = make_batch([(1, 0), (1, 260), (1, 5), (1, 0), (1, 31)], Shape(page_size=8))
    tuning = tiles_of_16(split, least_tokens)
    ours = paged(batch, tuning)
    assert_close(ours, expected(batch))
    assert (ours[[0, 3]] == 0).all()
    assert torch.equal(ours, paged(batch, tuning)), "the same batch gives the same bits"


def test_sequences_are_really_cut() -> None:
    """The plan that the decode kernel leaves for the join, against the rule worked out here."""
    from kernels import triton_decode

    batch = make_batch([(1, 260), (1, 5)], Shape(page_size=8))
    plans = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **constants: Any) -> None:
                plans.append(arguments[2].clone())
                triton_decode.join_kernel[grid](*arguments, **constants)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernels.triton_attention.join_kernel", Recorded())
        assert_close(paged(batch, tiles_of_16(6)), expected(batch))
    tiles, share = [17, 1], 3
    pieces = [-(-n // share) for n in tiles]
    assert plans[0].tolist() == [[0, pieces[0]], [pieces[0], pieces[1]]]


def test_more_pieces_than_one_step_of_the_join() -> None:
    """One sequence gets 70 pieces, the join takes 64 at a time."""
    batch = make_batch([(1, 70 * TILE)], Shape(q_heads=1, kv_heads=1))
    assert_close(paged(batch, tiles_of_16(70)), expected(batch))


def test_padding_rows_give_zeros_whatever_their_table_says() -> None:
    batch = make_batch([(1, 30), (1, 0), (1, 0)])
    batch.block_table[1:] = 2**31 - 1
    for split in (1, 4):
        ours = paged(batch, tiles_of_16(split))
        assert_close(ours, expected(batch))
        assert (ours[1:] == 0).all()


def test_no_lookup_outside_of_a_sequences_pages() -> None:
    """Entries beyond the context, and those that a window left behind, may be anything."""
    for window, queries in ((None, 1), (20, 1), (20, 6)):
        batch = make_batch([(queries, 90), (queries, 35)], Shape(page_size=4), window=window)
        wild = batch._replace(
            block_table=torch.where(batch.block_table < 0, 2**30, batch.block_table)
        )
        ours = paged(wild, tiles_of_16(3), window=window)
        assert_close(ours, expected(batch, window=window))


def test_a_page_that_nobody_may_read_can_be_unmapped_memory() -> None:
    """The table holds exactly the pages of the longest context: no row is read past its end."""
    batch = make_batch([(1, 48), (1, 16)], Shape(page_size=16))
    exact = batch.block_table[:, :3].contiguous()
    assert_close(paged(batch._replace(block_table=exact), tiles_of_16(2)), expected(batch))


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("page_size", [1, 4, TILE])
def test_addresses_beyond_two_to_the_31_elements(page_size: int, queries: int) -> None:
    """Keys and values share a cache of 4 GiB of which only the pages in use are ever touched."""
    shape = Shape(dtype=torch.float16, page_size=page_size)
    batch = make_batch([(queries, 44)], shape)
    small = batch.key_cache.view(-1, page_size, shape.kv_heads, shape.head_dim)
    num_pages = 2**31 // small[0].numel() + len(small) + 1
    large = torch.empty((num_pages, *small.shape[1:]), dtype=shape.dtype)
    assert large.numel() > 2**31
    large[-len(small) :] = small
    cache = large.view(-1, *small.shape[2:])
    table = batch.block_table + num_pages - len(small)
    moved = batch._replace(key_cache=cache, value_cache=cache, block_table=table)
    right = expected(batch._replace(value_cache=batch.key_cache))
    torch.testing.assert_close(paged(moved, tiles_of_16(3)), right, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("queries", [1, 20])
def test_contiguous_addresses_beyond_two_to_the_31_elements(queries: int) -> None:
    from kernels import triton_attention

    shape = Shape(dtype=torch.float16)
    query, keys, _, _, bounds, lens = make_batch([(queries, 44)], shape).contiguous()
    start = 2**31 // keys[0].numel() + 5
    large = torch.empty((start + len(keys), *keys.shape[1:]), dtype=shape.dtype)
    large[start:] = keys
    starts = torch.tensor([start + 3], dtype=torch.int32)
    arguments = on_device((query, large, large, starts, bounds, lens))
    ours = triton_attention.contiguous_attention(*arguments, scale=0.25, tuning=tiles_of_16(3))
    near = torch.tensor([3], dtype=torch.int32)
    right = reference.contiguous_attention(query, keys, keys, near, bounds, lens, scale=0.25)
    torch.testing.assert_close(ours.cpu(), right, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_head_sizes_of_real_models(head_dim: int) -> None:
    shape = Shape(q_heads=2, kv_heads=1, head_dim=head_dim, dtype=torch.float16)
    batch = make_batch([(1, 40), (3, 20)], shape)
    torch.testing.assert_close(paged(batch, None), expected(batch), rtol=2e-3, atol=2e-3)


def test_empty_batch() -> None:
    batch = make_batch([(0, 9)])
    nobody = batch._replace(
        block_table=batch.block_table[:0],
        query_start_loc=batch.query_start_loc[:1],
        seq_lens=batch.seq_lens[:0],
    )
    for nothing in (batch, nobody):
        assert paged(nothing, None).shape == (0, 4, 16)


def test_table_without_columns() -> None:
    """No sequence has a context: there is nothing to look up."""
    batch = make_batch([(1, 0), (3, 0)])
    ours = paged(batch._replace(block_table=batch.block_table[:, :0]), tiles_of_16(2))
    assert (ours == 0).all()


decoding = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 0, 3, 18]), st.integers(0, 120)).map(
        lambda pair: (pair[0], pair[0] + pair[1])
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(
    lens=decoding,
    page_size=st.sampled_from([1, 4, 32]),
    split=st.integers(1, 12),
    window=st.none() | st.integers(1, 60),
    block_m=st.sampled_from([16, 64]),
)
def test_equals_reference_on_any_batch(
    lens: list[tuple[int, int]],
    page_size: int,
    split: int,
    window: int | None,
    block_m: int,
) -> None:
    num_tokens = sum(queries for queries, _ in lens)
    if num_tokens == len(lens) and any(queries != 1 for queries, _ in lens):
        lens = [*lens, (2, 2)]  # as many tokens as sequences promises one each
    batch = make_batch(lens, Shape(page_size=page_size), window=window)
    tuning = tiles_of_16(split, block_m=block_m)
    if num_tokens:
        assert_close(paged(batch, tuning, window=window), expected(batch, window=window))

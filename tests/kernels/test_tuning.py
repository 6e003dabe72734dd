"""Which sizes a GPU and a shape get, and how a batch is shared out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.tuning import DecodeTuning, attention_tuning, num_work_items

TUNING = DecodeTuning(64, 4, 3, 3, 128)
H200 = 132


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("capability", "shared_kib"), [(80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)]
)
def test_tiles_in_flight_fit_in_shared_memory(
    dtype: torch.dtype, capability: int, shared_kib: int
) -> None:
    """num_stages - 1 tiles of keys and values for each program that an SM is to hold."""
    for head_dim in (8, 64, 80, 128, 256):
        tuning = attention_tuning(head_dim, dtype, capability)
        row_bytes = 2 * head_dim * dtype.itemsize
        decode = tuning.decode.tile_n * row_bytes * (tuning.decode.num_stages - 1)
        prefill = tuning.prefill.tile_n * row_bytes * (tuning.prefill.num_stages - 1)
        assert max(decode, prefill) <= shared_kib * 1024
        if shared_kib > 99 and dtype != torch.float32:
            assert decode * tuning.decode.programs_per_processor <= shared_kib * 1024


def test_what_no_row_takes() -> None:
    with pytest.raises(ValueError, match=r"head dimension 512 of torch.bfloat16: .* up to 256"):
        attention_tuning(512, torch.bfloat16)


def test_few_sequences_get_one_wave() -> None:
    for num_seqs in (1, 2, 8):
        work = num_work_items(num_seqs, 8, H200, TUNING)
        assert work.budget == H200 * 3 // 8
        assert work.budget * 8 <= H200 * 3


def test_a_batch_that_fills_the_chip_many_times_is_not_cut() -> None:
    assert num_work_items(4096, 8, H200, TUNING) == (0, 4096, 0)
    assert num_work_items(64, 8, H200, TUNING).budget > 0


def test_short_sequences_are_cut_only_where_they_leave_the_chip_empty() -> None:
    assert num_work_items(8, 8, H200, TUNING).least_tokens == 128
    assert num_work_items(64, 8, H200, TUNING).least_tokens == 1024


def test_override() -> None:
    assert num_work_items(64, 8, H200, TUNING, split=1) == (0, 64, 0)
    assert num_work_items(64, 8, H200, TUNING, split=7)[:2] == (7, 71)


@given(
    tiles=st.lists(st.integers(1, 600), min_size=1, max_size=300),
    num_kv_heads=st.sampled_from([1, 8, 40, 96]),
)
def test_items_are_enough_for_any_lengths(tiles: list[int], num_kv_heads: int) -> None:
    """The kernel's rule: pieces of ceil(all tiles / budget) tiles at most."""
    work = num_work_items(len(tiles), num_kv_heads, H200, TUNING)
    if not work.budget:
        return
    share = max(1, -(-sum(tiles) // work.budget))
    assert sum(-(-n // share) for n in tiles) <= work.items

"""The kernels' cost against counting by hand."""

from __future__ import annotations

import torch
from transformers.masking_utils import sliding_window_causal_mask_function

from kernels.cost import (
    add_rms_norm_cost,
    attention_cost,
    copy_pages_cost,
    rope_store_cost,
    silu_mul_cost,
    store_kv_cost,
    swap_pages_cost,
)


def test_decode_reads_each_key_and_value_once() -> None:
    cost = attention_cost(
        [1] * 32, [2048] * 32, num_q_heads=8, num_kv_heads=4, head_dim=64, element_bytes=4
    )
    rows = 32 * 8 * 64 * 4
    assert cost.read_bytes == 32 * 2048 * 2 * 4 * 64 * 4 + rows
    assert cost.written_bytes == rows
    assert cost.flops == 4 * 32 * 2048 * 8 * 64


def test_window_and_chunks_equal_the_mask() -> None:
    """Pairs, tokens and pages counted on an explicit mask."""
    queries, context, window, page_size = 7, 40, 10, 4
    q = torch.arange(context - queries, context)[:, None]
    k = torch.arange(context)[None, :]
    visible = sliding_window_causal_mask_function(window)(torch.tensor(0), torch.tensor(0), q, k)
    tokens = int(visible.any(0).sum())
    pages = len(set((k[0][visible.any(0)] // page_size).tolist()))
    sizes = {"num_q_heads": 2, "num_kv_heads": 1, "head_dim": 8, "element_bytes": 2}
    cost = attention_cost([queries], [context], window=window, page_size=page_size, **sizes)
    assert cost.flops == int(visible.sum()) * 4 * 2 * 8
    assert cost.read_bytes == (2 * tokens * 8 + queries * 2 * 8) * 2 + 4 * pages


def test_rows_without_context_cost_their_output_only() -> None:
    sizes = {"num_q_heads": 2, "num_kv_heads": 1, "head_dim": 8, "element_bytes": 2}
    cost = attention_cost([1, 0], [0, 9], page_size=16, **sizes)
    assert (cost.read_bytes, cost.written_bytes, cost.flops) == (32, 32, 0)


def test_writes() -> None:
    sizes = {"num_kv_heads": 4, "head_dim": 64, "element_bytes": 4}
    assert store_kv_cost(10, **sizes).moved_bytes == 2 * 10 * 2048 + 80
    assert copy_pages_cost(3, 16, num_layers=8, **sizes).moved_bytes == 2 * 3 * 16 * 8 * 2048
    assert swap_pages_cost(3, 16, num_layers=8, **sizes) == copy_pages_cost(
        3, 16, num_layers=8, **sizes
    )


def test_element_wise_work_moves_its_tensors_once() -> None:
    """Against the bytes of the tensors that a call is given, each once."""
    half = torch.float16
    hidden, added, out = (torch.empty(6, 40, dtype=half) for _ in range(3))
    weight = torch.empty(40, dtype=half)
    cost = add_rms_norm_cost(6, 40, element_bytes=2)
    assert cost.read_bytes == hidden.nbytes + added.nbytes + weight.nbytes
    assert cost.written_bytes == hidden.nbytes + out.nbytes
    alone = add_rms_norm_cost(6, 40, element_bytes=2, has_added=False)
    assert alone.moved_bytes == hidden.nbytes + weight.nbytes + out.nbytes
    assert cost.flops - alone.flops == hidden.numel()

    qkv, angles = torch.empty(6, (4 + 2 * 2) * 16, dtype=half), torch.empty(6, 16, dtype=half)
    slots = torch.empty(6, dtype=torch.int64)
    heads = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 16, "element_bytes": 2}
    cost = rope_store_cost(6, **heads)
    assert cost.read_bytes == qkv.nbytes + angles.nbytes + slots.nbytes
    assert cost.written_bytes == qkv.nbytes
    assert cost.flops == 3 * 6 * (4 + 2) * 16
    assert rope_store_cost(6, has_norm=True, **heads).read_bytes == cost.read_bytes + 2 * 16 * 2

    gate_up, product = torch.empty(6, 160, dtype=half), torch.empty(6, 80, dtype=half)
    cost = silu_mul_cost(6, 80, element_bytes=2)
    assert (cost.read_bytes, cost.written_bytes) == (gate_up.nbytes, product.nbytes)

"""The kernels' cost against counting by hand."""

from __future__ import annotations

import torch
from transformers.masking_utils import sliding_window_causal_mask_function

from kernels.cost import attention_cost, copy_pages_cost, store_kv_cost


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

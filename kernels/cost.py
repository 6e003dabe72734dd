"""Bytes and floating-point operations that the kernels cannot do without.

Least traffic: every key and value of a sequence's visible context is read once, every query and
output once. Divided by a measured time these give the bandwidth and rate that a kernel reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Cost(NamedTuple):
    """Bytes read, bytes written, floating-point operations (a multiply-add counts as two)."""

    read_bytes: int
    written_bytes: int
    flops: int

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def attention_cost(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
    window: int | None = None,
    page_size: int | None = None,
) -> Cost:
    """Causal attention of a ragged batch; with `page_size` also the block-table entries read.

    FLOPs: 4 x query heads x head_dim for each visible (query, key) pair (two products); softmax
    is not counted, as in FlashAttention (Dao et al., 2022, section 4).
    """
    kv_tokens = pairs = table_entries = 0
    for queries, context in zip(query_lens, seq_lens, strict=True):
        positions = range(max(0, context - queries), context)
        if not positions:
            continue
        lowest = 0 if window is None else max(0, positions.start - window + 1)
        kv_tokens += context - lowest
        pairs += sum(q + 1 if window is None else min(q + 1, window) for q in positions)
        if page_size is not None:
            table_entries += (context - 1) // page_size - lowest // page_size + 1
    row_bytes = sum(query_lens) * num_q_heads * head_dim * element_bytes
    kv_bytes = 2 * kv_tokens * num_kv_heads * head_dim * element_bytes
    flops = 4 * pairs * num_q_heads * head_dim
    return Cost(kv_bytes + row_bytes + 4 * table_entries, row_bytes, flops)


def store_kv_cost(num_tokens: int, *, num_kv_heads: int, head_dim: int, element_bytes: int) -> Cost:
    """Keys and values read and written once, and an 8-byte slot a token."""
    kv_bytes = 2 * num_tokens * num_kv_heads * head_dim * element_bytes
    return Cost(kv_bytes + 8 * num_tokens, kv_bytes, 0)


def copy_pages_cost(
    num_copies: int,
    page_size: int,
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
) -> Cost:
    """Whole pages of keys and values in every layer, without the staging in between."""
    page_bytes = 2 * num_layers * page_size * num_kv_heads * head_dim * element_bytes
    return Cost(num_copies * page_bytes, num_copies * page_bytes, 0)


def swap_pages_cost(
    num_pages: int,
    page_size: int,
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
) -> Cost:
    """Whole pages to the host or from it: half of the traffic is the link's, not the memory's."""
    sizes = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "element_bytes": element_bytes}
    return copy_pages_cost(num_pages, page_size, num_layers=num_layers, **sizes)


def add_rms_norm_cost(
    num_rows: int, width: int, *, element_bytes: int, has_added: bool = True
) -> Cost:
    """Rows read once, and written once more where something is added to them; the weight once.

    FLOPs: an element is added, squared, summed, scaled and multiplied by its weight.
    """
    row_bytes = num_rows * width * element_bytes
    written = (2 if has_added else 1) * row_bytes
    read = (2 if has_added else 1) * row_bytes + width * element_bytes
    return Cost(read, written, num_rows * width * (5 if has_added else 4))


def rope_store_cost(
    num_tokens: int,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    element_bytes: int,
    has_norm: bool = False,
) -> Cost:
    """Queries, keys and values read and written once; of each token its angles and its 8-byte slot.

    FLOPs: 3 for each element of a rotated head, 4 more where heads are normalised.
    """
    heads = num_q_heads + 2 * num_kv_heads
    written = num_tokens * heads * head_dim * element_bytes
    read = written + num_tokens * (head_dim * element_bytes + 8)
    if has_norm:
        read += 2 * head_dim * element_bytes
    turned = num_tokens * (num_q_heads + num_kv_heads) * head_dim
    return Cost(read, written, turned * (7 if has_norm else 3))


def silu_mul_cost(num_tokens: int, width: int, *, element_bytes: int) -> Cost:
    """Gates and ups read, products written. FLOPs: exp, sum, quotient, product."""
    row_bytes = num_tokens * width * element_bytes
    return Cost(2 * row_bytes, row_bytes, 4 * num_tokens * width)

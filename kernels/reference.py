"""Paged attention in plain torch: short, slow and the truth that other kernels are held to.

Layout shared by every kernel: one layer's `key_cache` and `value_cache` have the shape
(num_slots, num_kv_heads, head_dim) and slot = page_id * page_size + offset, so the same memory
serves every page size and contiguous placement alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    page_size: int,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over keys and values that lie in pages.

    query: (num_tokens, num_q_heads, head_dim); sequence i owns the rows from query_start_loc[i]
        up to query_start_loc[i + 1], which are the last tokens of its context.
    block_table: int32 (num_seqs, max_pages), page ids in logical order. Entries below 0 are pages
        that a sliding window released; they and those past the context are never read.
    query_start_loc: int32 (num_seqs + 1). seq_lens: int32 (num_seqs), tokens in the context, the
        new ones included; a row without any context yields zeros.
    window: the query at position q sees the keys at positions in (q - window, q], as Hugging
        Face's sliding windows do; None sees all up to q.
    softcap: logits become softcap * tanh(logits / softcap) after scaling (Gemma 2, section 2).
    Returns `out`, of the shape and dtype of `query`.
    """

    def slots(i: int, positions: Tensor) -> Tensor:
        pages = block_table[i].long()[positions // page_size]
        return pages * page_size + positions % page_size

    return _attention(
        query, key_cache, value_cache, slots, query_start_loc, seq_lens, scale, window, softcap, out
    )


def contiguous_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    start_slots: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`paged_attention` without a table: sequence i lies at the slots from start_slots[i] on."""

    def slots(i: int, positions: Tensor) -> Tensor:
        return start_slots[i].long() + positions

    return _attention(
        query, key_cache, value_cache, slots, query_start_loc, seq_lens, scale, window, softcap, out
    )


def _attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Callable[[int, Tensor], Tensor],
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor | None,
) -> Tensor:
    out = torch.empty_like(query) if out is None else out
    group = query.shape[1] // key_cache.shape[1]
    bounds = query_start_loc.tolist()
    for i, context in enumerate(seq_lens.tolist()):
        first, last = bounds[i], bounds[i + 1]
        if first == last:
            continue
        q_positions = torch.arange(context - (last - first), context, device=query.device)
        lowest = 0 if window is None else max(0, int(q_positions[0]) - window + 1)
        k_positions = torch.arange(lowest, context, device=query.device)
        visible = k_positions[None, :] <= q_positions[:, None]
        if window is not None:
            visible &= k_positions[None, :] > q_positions[:, None] - window

        rows = slots(i, k_positions)
        keys = key_cache[rows].float().repeat_interleave(group, dim=1)
        values = value_cache[rows].float().repeat_interleave(group, dim=1)
        logits = torch.einsum("qhd,khd->hqk", query[first:last].float(), keys) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        weights = weights.masked_fill(~visible.any(dim=-1)[None, :, None], 0.0)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)
    return out


def store_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Write the new tokens' keys and values, (num_tokens, num_kv_heads, head_dim), to their slots.

    slot_mapping: int64 (num_tokens); a token whose slot is -1 is skipped.
    """
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    key_cache[slots] = key[kept].to(key_cache.dtype)
    value_cache[slots] = value[kept].to(value_cache.dtype)


def copy_pages(
    key_cache: Tensor,
    value_cache: Tensor,
    copies: Tensor,
    page_size: int,
    num_staged: int | None = None,
) -> None:
    """Copy whole pages: `copies` is int64 (n, 2) of (source, destination) page ids.

    All sources are read before any destination is written. Caches may have leading dimensions,
    (..., num_slots, num_kv_heads, head_dim): all layers are then copied in one call.
    num_staged: promises that only the first so many copies have a source which another copy
        writes; None promises nothing.
    """
    if copies.numel() == 0:
        return
    offsets = torch.arange(page_size, device=copies.device)
    slots = copies.long()[:, :, None] * page_size + offsets
    sources, destinations = slots[:, 0].flatten(), slots[:, 1].flatten()
    for cache in (key_cache, value_cache):
        cache[..., destinations, :, :] = cache[..., sources, :, :]

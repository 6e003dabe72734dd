"""Attention on the CPU: decode rows by a compiled kernel that reads pages in place, chunks by GEMM.

Same functions and promises as `kernels.reference`. float32, bfloat16 and float16 caches are read
as they are; arithmetic is float32.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from kernels.cpu_compiled import num_threads
from kernels.cpu_decode import KVPages, decode_rows
from kernels.cpu_prefill import Workspace, chunk_attention

_MOST_ROWWISE = 2048
"""Chunks with (queries - 1) x context up to this are cheaper row by row than by GEMM, measured at
8 query and 4 KV heads of 64: the compiled rows cost time for every pair, GEMM a fixed 80 us."""

_NO_TABLE = np.empty((0, 0), np.int32)
_NO_STARTS = np.empty(0, np.int64)


class _Workspaces(threading.local):
    """Buffers kept between calls, one set a thread."""

    def __init__(self) -> None:
        self.keys = Workspace()
        self.values = Workspace()
        self.logits = Workspace()


_workspaces = _Workspaces()


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
    """See `reference.paged_attention`. Caches must be contiguous."""
    table = block_table.to(torch.int32).contiguous().numpy()
    args = (query, key_cache, value_cache, table, _NO_STARTS, page_size)
    return _attention(*args, query_start_loc, seq_lens, scale, window, softcap, out)


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
    """See `reference.contiguous_attention`. Caches must be contiguous."""
    starts = start_slots.to(torch.int64).contiguous().numpy()
    args = (query, key_cache, value_cache, _NO_TABLE, starts, 0)
    return _attention(*args, query_start_loc, seq_lens, scale, window, softcap, out)


def _attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: np.ndarray,
    starts: np.ndarray,
    page_size: int,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor | None,
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    query32 = query.detach().float().contiguous()
    in_place = out.dtype == torch.float32 and out.is_contiguous()
    out32 = out if in_place else torch.empty(query.shape)
    bounds = query_start_loc.to(torch.int32).contiguous().numpy()
    lens = seq_lens.to(torch.int32).contiguous().numpy()
    kv = KVPages(_raw(key_cache), _raw(value_cache), table, starts, page_size, key_cache.shape[1])
    longer = decode_rows(
        num_threads(),
        query32.numpy(),
        kv,
        bounds,
        lens,
        _MOST_ROWWISE,
        scale,
        window or 0,
        softcap or 0.0,
        out32.numpy(),
    )
    if longer:
        pairs = (np.diff(bounds).astype(np.int64) - 1) * lens
        for seq in np.flatnonzero(pairs > _MOST_ROWWISE).tolist():
            first, last, context = int(bounds[seq]), int(bounds[seq + 1]), int(lens[seq])
            if last - first > context:
                out32[first : last - context] = 0
                first = last - context
            if first == last:
                continue
            lowest = 0 if window is None else max(0, context - (last - first) - window + 1)
            keys, values = _gather(
                key_cache, value_cache, table, starts, page_size, seq, lowest, context
            )
            chunk_attention(
                query32[first:last],
                keys,
                values,
                scale=scale,
                window=window,
                softcap=softcap,
                out=out32[first:last],
                workspace=_workspaces.logits,
            )
    if not in_place:
        out.copy_(out32)
    return out


def _gather(
    key_cache: Tensor,
    value_cache: Tensor,
    table: np.ndarray,
    starts: np.ndarray,
    page_size: int,
    seq: int,
    lowest: int,
    context: int,
) -> tuple[Tensor, Tensor]:
    """Keys and values at the positions lowest .. context - 1 as float32, without a copy if they
    lie side by side in float32 already."""
    if page_size == 0:
        start = int(starts[seq]) + lowest
    else:
        first_page = lowest // page_size
        pages = table[seq, first_page : -(-context // page_size)]
        if len(pages) == 1 or (np.diff(pages) == 1).all():
            start = int(pages[0]) * page_size + lowest - first_page * page_size
        else:
            return _gather_pages(key_cache, value_cache, pages, page_size, lowest, context)
    rows = slice(start, start + context - lowest)
    return key_cache[rows].float(), value_cache[rows].float()


def _gather_pages(
    key_cache: Tensor,
    value_cache: Tensor,
    pages: np.ndarray,
    page_size: int,
    lowest: int,
    context: int,
) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(pages.astype(np.int64))
    skipped = lowest % page_size
    gathered = []
    for cache, workspace in ((key_cache, _workspaces.keys), (value_cache, _workspaces.values)):
        num_slots, num_kv_heads, dim = cache.shape
        paged = cache[: num_slots // page_size * page_size].view(-1, page_size, num_kv_heads, dim)
        if cache.dtype == torch.float32:
            buffer = workspace.take(len(pages), page_size, num_kv_heads, dim)
            torch.index_select(paged, 0, index, out=buffer)
        else:
            buffer = paged.index_select(0, index).float()
        flat = buffer.view(-1, num_kv_heads, dim)
        gathered.append(flat[skipped : skipped + context - lowest])
    return gathered[0], gathered[1]


def _raw(cache: Tensor) -> np.ndarray:
    """A cache as the flat array that `decode_rows` takes."""
    if not cache.is_contiguous():
        raise ValueError(
            f"KV cache with strides {cache.stride()} for shape {tuple(cache.shape)}: "
            "the CPU kernels need a contiguous (num_slots, num_kv_heads, head_dim) tensor"
        )
    flat = cache.detach().view(-1)
    if cache.dtype == torch.float32:
        return flat.numpy()
    if cache.dtype == torch.bfloat16:
        return flat.view(torch.uint16).numpy()
    if cache.dtype == torch.float16:
        return flat.view(torch.int16).numpy()
    raise ValueError(f"KV cache of {cache.dtype}: use float32, bfloat16 or float16")


def store_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """See `reference.store_kv`."""
    slots = slot_mapping.to(torch.int64)
    kept = slots >= 0
    if not bool(kept.all()):
        slots, key, value = slots[kept], key[kept], value[kept]
    key_cache.index_copy_(0, slots, key.to(key_cache.dtype))
    value_cache.index_copy_(0, slots, value.to(value_cache.dtype))


def copy_pages(
    key_cache: Tensor,
    value_cache: Tensor,
    copies: Tensor,
    page_size: int,
    num_staged: int | None = None,
) -> None:
    """See `reference.copy_pages`."""
    if copies.numel() == 0:
        return
    sources, destinations = copies.to(torch.int64).unbind(1)
    for cache in (key_cache, value_cache):
        num_pages = cache.shape[-3] // page_size
        paged = cache.narrow(-3, 0, num_pages * page_size).unflatten(-3, (num_pages, page_size))
        # index_copy_ would first make a strided pool contiguous: time that goes with its size
        paged[..., destinations, :, :, :] = paged[..., sources, :, :, :]

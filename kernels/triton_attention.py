"""Attention in Triton over paged or contiguous KV. Same functions and promises as
`kernels.reference`; nothing here waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels.triton_cache import copy_pages, store_kv
from kernels.triton_decode import decode_join_kernel, decode_splits_kernel
from kernels.triton_prefill import prefill_kernel

__all__ = ["contiguous_attention", "copy_pages", "paged_attention", "store_kv"]

_NO_WINDOW = 2**30
_MAX_SPLITS = 32


class Tiling(NamedTuple):
    """Compile-time sizes of a kernel."""

    block_m: int
    tile_n: int
    num_warps: int
    num_stages: int


def decode_tiling(group: int, head_dim: int, dtype: torch.dtype) -> Tiling:
    """Sizes for the decode kernel: one padded tile row for each query of a group."""
    wide = head_dim > 128 or dtype == torch.float32
    return Tiling(max(16, triton.next_power_of_2(group)), 32 if wide else 64, 4, 2)


def prefill_tiling(group: int, head_dim: int, dtype: torch.dtype) -> Tiling:
    """Sizes for the prefill kernel: at least one query of a group.

    64 x 64 at a head dimension of 128 spills on sm_80.
    """
    wide = head_dim > 128 or dtype == torch.float32
    least = max(16, triton.next_power_of_2(group))
    return Tiling(max(least, 16 if wide else 64), 32 if wide or head_dim > 64 else 64, 4, 2)


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
    """See `reference.paged_attention`."""
    where = _Where(block_table, block_table.stride(0), block_table, page_size, True)
    args = (query, key_cache, value_cache, where, query_start_loc, seq_lens)
    return _attention(*args, scale, window, softcap, out)


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
    """See `reference.contiguous_attention`."""
    where = _Where(query_start_loc, 0, start_slots, 1, False)
    args = (query, key_cache, value_cache, where, query_start_loc, seq_lens)
    return _attention(*args, scale, window, softcap, out)


class _Where(NamedTuple):
    """Where the sequences lie; what the variant does not use is any tensor on the device."""

    table: Tensor
    table_stride: int
    start_slots: Tensor
    page_size: int
    has_table: bool


def _attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    where: _Where,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor | None,
) -> Tensor:
    out = torch.empty_like(query) if out is None else out
    num_tokens, num_heads, head_dim = query.shape
    num_seqs, num_kv_heads = seq_lens.shape[0], key_cache.shape[1]
    if key_cache.stride() != value_cache.stride() or key_cache.stride(2) != 1:
        raise ValueError(
            f"KV caches with strides {key_cache.stride()} and {value_cache.stride()}: "
            "the Triton kernels need equal strides with a contiguous head dimension"
        )
    inputs = (
        query if query.stride(2) == 1 else query.contiguous(),
        key_cache,
        value_cache,
        where.table,
        where.start_slots,
        query_start_loc,
        seq_lens,
    )
    query = inputs[0]
    kv_strides = (key_cache.stride(0), key_cache.stride(1), where.table_stride)
    numbers = (scale, softcap or 1.0, window or _NO_WINDOW)
    constants = {
        "GROUP": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "PAGE_SIZE": where.page_size,
        "HAS_TABLE": where.has_table,
        "HAS_SOFTCAP": bool(softcap),
        "PRECISION": _precision(query.dtype),
    }
    group = constants["GROUP"]
    if num_tokens != num_seqs:
        tiling = prefill_tiling(group, head_dim, query.dtype)
        num_blocks = num_tokens // (tiling.block_m // group) + num_seqs
        prefill_kernel[(num_blocks, num_kv_heads)](
            *inputs,
            out,
            query.stride(0),
            query.stride(1),
            out.stride(0),
            out.stride(1),
            *kv_strides,
            num_seqs,
            *numbers,
            **constants,
            BLOCK_M=tiling.block_m,
            TILE_N=tiling.tile_n,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    splits = num_splits(num_seqs * num_kv_heads, query.device)
    part_acc = query.new_empty((num_seqs, num_heads, splits, head_dim), dtype=torch.float32)
    part_peak = query.new_empty((num_seqs, num_heads, splits), dtype=torch.float32)
    part_total = torch.empty_like(part_peak)
    tiling = decode_tiling(group, head_dim, query.dtype)
    decode_splits_kernel[(num_seqs, num_kv_heads, splits)](
        *inputs,
        part_acc,
        part_peak,
        part_total,
        query.stride(0),
        query.stride(1),
        *kv_strides,
        *numbers,
        **constants,
        BLOCK_M=tiling.block_m,
        TILE_N=tiling.tile_n,
        NUM_SPLITS=splits,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    decode_join_kernel[(num_seqs, num_heads)](
        part_acc,
        part_peak,
        part_total,
        query_start_loc,
        out,
        out.stride(0),
        out.stride(1),
        HEAD_DIM=head_dim,
        BLOCK_D=constants["BLOCK_D"],
        NUM_SPLITS=splits,
        num_warps=2,
    )
    return out


def num_splits(num_groups: int, device: torch.device) -> int:
    """Splits that fill the device twice over with `num_groups` sequences x KV heads.

    A power of two that depends on no length, so a captured graph stays valid.
    """
    if device.type != "cuda":
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = triton.next_power_of_2(triton.cdiv(2 * processors, max(1, num_groups)))
    return min(_MAX_SPLITS, wanted)


def _precision(dtype: torch.dtype) -> str:
    """How float32 products are formed: exactly, unless torch was told that TF32 will do."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"

"""Attention in Triton over paged or contiguous KV. Same functions and promises as
`kernels.reference`; nothing here waits for the device."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.triton_cache import copy_pages, store_kv
from kernels.triton_decode import JOIN_FEW, JOIN_MANY, decode_kernel, join_kernel
from kernels.triton_prefill import prefill_kernel
from kernels.triton_tile import rows_of_group
from kernels.tuning import (
    LEAST_BLOCK_S,
    AttentionTuning,
    DecodeTuning,
    PrefillTuning,
    attention_tuning,
    num_work_items,
)

__all__ = ["contiguous_attention", "copy_pages", "paged_attention", "store_kv"]

_NO_WINDOW = 2**30


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
    tuning: AttentionTuning | None = None,
) -> Tensor:
    """See `reference.paged_attention`. A batch with as many query tokens as sequences is taken to
    have one for each. tuning: another choice than `kernels.tuning`'s."""
    where = _Where(block_table, block_table.stride(0), block_table, page_size, True)
    args = (query, key_cache, value_cache, where, query_start_loc, seq_lens)
    return _attention(*args, scale, window, softcap, out, tuning)


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
    tuning: AttentionTuning | None = None,
) -> Tensor:
    """See `paged_attention` and `reference.contiguous_attention`."""
    where = _Where(query_start_loc, 0, start_slots, 1, False)
    args = (query, key_cache, value_cache, where, query_start_loc, seq_lens)
    return _attention(*args, scale, window, softcap, out, tuning)


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
    tuning: AttentionTuning | None,
) -> Tensor:
    out = torch.empty_like(query) if out is None else out
    num_tokens, _, head_dim = query.shape
    if key_cache.stride() != value_cache.stride() or key_cache.stride(2) != 1:
        raise ValueError(
            f"KV caches with strides {key_cache.stride()} and {value_cache.stride()}: "
            "the Triton kernels need equal strides with a contiguous head dimension"
        )
    if num_tokens == 0:
        return out
    processors, capability = _chip(query.device)
    tuning = tuning or attention_tuning(head_dim, query.dtype, capability)
    call = _Call(
        query if query.stride(2) == 1 else query.contiguous(),
        key_cache,
        value_cache,
        where,
        query_start_loc,
        seq_lens,
        out,
        (scale, softcap or 1.0, window or _NO_WINDOW),
        _constants(query, key_cache, where, window, softcap),
    )
    if num_tokens != seq_lens.shape[0]:
        _prefill(call, tuning.prefill)
    _decode(call, tuning.decode, tuning.split, processors)
    return out


class _Call(NamedTuple):
    """The arguments of one call, as both kernels take them."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    where: _Where
    query_start_loc: Tensor
    seq_lens: Tensor
    out: Tensor
    numbers: tuple[float, float, int]
    constants: dict[str, Any]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        where = (self.where.table, self.where.start_slots)
        return (*self[:3], *where, self.query_start_loc, self.seq_lens, self.out)

    @property
    def strides(self) -> tuple[int, ...]:
        kv_strides = self.key_cache.stride()[:2]
        return (
            *self.query.stride()[:2],
            *self.out.stride()[:2],
            *kv_strides,
            self.where.table_stride,
        )


def _constants(
    query: Tensor, key_cache: Tensor, where: _Where, window: int | None, softcap: float | None
) -> dict[str, Any]:
    head_dim = query.shape[2]
    return {
        "GROUP": query.shape[1] // key_cache.shape[1],
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "PAGE_SIZE": where.page_size,
        "HAS_TABLE": where.has_table,
        "HAS_WINDOW": bool(window),
        "HAS_SOFTCAP": bool(softcap),
        "PRECISION": _precision(query.dtype),
    }


def _prefill(call: _Call, tuning: PrefillTuning) -> None:
    num_tokens, num_seqs = call.query.shape[0], call.seq_lens.shape[0]
    group = call.constants["GROUP"]
    block_m = max(tuning.block_m, rows_of_group(group))
    num_blocks = num_tokens // (block_m // group) + num_seqs
    prefill_kernel[(call.key_cache.shape[1], num_blocks)](
        *call.inputs,
        *call.strides,
        num_seqs,
        *call.numbers,
        **call.constants,
        BLOCK_M=block_m,
        TILE_N=tuning.tile_n,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )


def _decode(call: _Call, tuning: DecodeTuning, split: int | None, processors: int) -> None:
    query, out = call.query, call.out
    num_seqs, num_kv_heads = call.seq_lens.shape[0], call.key_cache.shape[1]
    _, num_heads, head_dim = query.shape
    budget, items, least_tokens = num_work_items(num_seqs, num_kv_heads, processors, tuning, split)
    parts = items if budget else 0
    part_acc = query.new_empty((parts, num_heads, head_dim), dtype=torch.float32)
    part_lse = query.new_empty((parts, num_heads), dtype=torch.float32)
    plan = query.new_empty((num_seqs, 2), dtype=torch.int32)
    decode_kernel[(num_kv_heads, items)](
        *call.inputs,
        part_acc,
        part_lse,
        plan,
        *call.strides,
        num_seqs,
        budget,
        max(1, least_tokens // tuning.tile_n),
        *call.numbers,
        **call.constants,
        BLOCK_M=rows_of_group(call.constants["GROUP"]),
        BLOCK_S=max(LEAST_BLOCK_S, triton.next_power_of_2(num_seqs)),
        TILE_N=tuning.tile_n,
        HAS_SPLITS=budget > 0,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
    if not budget:
        return
    tiling = JOIN_FEW if num_seqs < 8 else JOIN_MANY
    join_kernel[(num_heads, num_seqs)](
        part_acc,
        part_lse,
        plan,
        call.query_start_loc,
        out,
        *out.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_D=call.constants["BLOCK_D"],
        BLOCK_P=tiling.block_p,
        num_warps=tiling.num_warps,
    )


@cache
def _chip(device: torch.device) -> tuple[int, int]:
    """Processors and capability (90 for 9.0); the interpreter gets a chip of four programs."""
    if device.type != "cuda":
        return 2, 80
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, 10 * properties.major + properties.minor


def _precision(dtype: torch.dtype) -> str:
    """How float32 products are formed: of three TF32 ones, nearly exact (by how much has not been
    measured on a GPU), unless torch was told that one will do. Exact ones bypass the tensor cores,
    and their registers spill."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

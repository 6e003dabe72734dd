"""Attention of ragged prefill chunks over pages in Triton."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from kernels.triton_tile import (
    LOWEST_LOGIT,
    attend_tiles,
    attention_constants,
    attention_types,
    rows_of_group,
)
from kernels.tuning import attention_tuning
from kernels.variant import KernelShape, Variant


@triton.jit
def _sequence_of_block(query_start_loc, num_seqs, block, BLOCK_Q: tl.constexpr):
    """The sequence that a block of queries belongs to: sequence i owns the blocks from
    query_start_loc[i] // BLOCK_Q + i on, which is enough for all of its queries."""
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // BLOCK_Q + middle <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["window", "num_seqs", "table_stride"])
def prefill_kernel(
    query,
    key_cache,
    value_cache,
    table,
    start_slots,
    query_start_loc,
    seq_lens,
    out,
    query_token_stride,
    query_head_stride,
    out_token_stride,
    out_head_stride,
    slot_stride,
    head_stride,
    table_stride,
    num_seqs,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_M // GROUP queries of one sequence, all heads of a KV group in one tile.

    Grid: (KV heads, blocks of queries). Sequences with a single query are left to the decode
    kernel. A query without visible keys gives zeros.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    # a sequence's last queries see most: they go first, so that the short ones fill the end
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    seq = _sequence_of_block(query_start_loc, num_seqs, block, BLOCK_Q)
    first_token = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - first_token
    first_query = (block - first_token // BLOCK_Q - seq) * BLOCK_Q
    if (num_queries == 1) | (first_query >= num_queries):
        return

    context = tl.load(seq_lens + seq)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q_index = first_query + m // GROUP
    q_positions = context - num_queries + q_index
    is_query = (m < BLOCK_Q * GROUP) & (q_index < num_queries)
    is_real = is_query[:, None] & (d < HEAD_DIM)[None, :]
    token = (first_token + q_index).to(tl.int64)[:, None]
    head = (kv_head * GROUP + m % GROUP)[:, None]
    q_offsets = token * query_token_stride + head * query_head_stride + d[None, :]
    q = tl.load(query + q_offsets, mask=is_real, other=0.0)
    table_row = table + seq.to(tl.int64) * table_stride
    start_slot = tl.full([], 0, tl.int64)
    if not HAS_TABLE:
        start_slot = tl.load(start_slots + seq).to(tl.int64)
    kv_offset = kv_head.to(tl.int64) * head_stride

    # Tiles before `full` begin before the last query's window does; tiles from `diagonal` on end
    # after the first query.
    first_position = context - num_queries + first_query
    last_position = tl.minimum(first_position + BLOCK_Q, context) - 1
    end = last_position + 1
    lowest = 0
    full = 0
    if HAS_WINDOW:
        lowest = tl.maximum(first_position - window + 1, 0)
        full = tl.cdiv(tl.maximum(last_position - window + 1, 0), TILE_N) * TILE_N
    begin = lowest // TILE_N * TILE_N
    diagonal = tl.maximum((first_position + 1) // TILE_N * TILE_N, begin)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], LOWEST_LOGIT, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for part in tl.static_range(0 if HAS_WINDOW else 1, 3):
        if part == 0:
            part_begin = begin
            part_stop = tl.minimum(full, diagonal)
        elif part == 1:
            part_begin = tl.minimum(tl.maximum(full, begin), diagonal)
            part_stop = diagonal
        else:
            part_begin = diagonal
            part_stop = end
        acc, peak, total = attend_tiles(
            q,
            acc,
            peak,
            total,
            key_cache + kv_offset,
            value_cache + kv_offset,
            table_row,
            start_slot,
            slot_stride,
            q_positions,
            part_begin,
            part_stop,
            lowest,
            end,
            scale,
            softcap,
            window,
            HEAD_DIM,
            BLOCK_D,
            TILE_N,
            PAGE_SIZE,
            HAS_TABLE,
            HAS_WINDOW,
            HAS_SOFTCAP,
            part != 1,
            True,
            PRECISION,
        )
    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    out_offsets = token * out_token_stride + head * out_head_stride + d[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=is_real)


def variants(shape: KernelShape) -> Iterator[Variant]:
    tuning = attention_tuning(shape.head_dim, shape.dtype, shape.capability).prefill
    constants = attention_constants(shape) | {
        "BLOCK_M": max(tuning.block_m, rows_of_group(shape.group)),
        "TILE_N": tuning.tile_n,
    }
    types = attention_types(shape)
    yield Variant(prefill_kernel, types, constants, tuning.num_warps, tuning.num_stages)

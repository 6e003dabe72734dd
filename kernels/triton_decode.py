"""Decode attention in Triton: each sequence's KV is split, a second kernel joins the parts.

Flash-Decoding (Dao et al., 2023). The number of splits and the grid depend on no length, so that
a CUDA graph captured once serves every later step.
"""

import triton
import triton.language as tl

from kernels.triton_tile import attend_tile, tile_slots


@triton.jit(do_not_specialize=["window", "table_stride"])
def decode_splits_kernel(
    query,
    key_cache,
    value_cache,
    table,
    start_slots,
    query_start_loc,
    seq_lens,
    part_acc,
    part_peak,
    part_total,
    query_token_stride,
    query_head_stride,
    slot_stride,
    head_stride,
    table_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split of one sequence and KV head; the rows of the tile are the queries of the group.

    Sequences with a query count other than 1 are left alone. Writes part_acc (num_seqs, q heads,
    NUM_SPLITS, HEAD_DIM), part_peak and part_total (num_seqs, q heads, NUM_SPLITS), all float32;
    a split without tokens writes total 0 and leaves part_acc as it is.
    """
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.load(query_start_loc + seq)
    if tl.load(query_start_loc + seq + 1) - token != 1:
        return
    context = tl.load(seq_lens + seq)
    lowest = tl.maximum(context - window, 0)
    share = tl.cdiv(tl.cdiv(context - lowest, NUM_SPLITS), TILE_N) * TILE_N
    begin = lowest + split * share
    end = tl.minimum(begin + share, context)

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    row = seq.to(tl.int64) * tl.num_programs(1) * GROUP + kv_head * GROUP + m
    part = row * NUM_SPLITS + split
    if begin >= end:
        tl.store(part_peak + part, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=m < GROUP)
        tl.store(part_total + part, tl.zeros([BLOCK_M], tl.float32), mask=m < GROUP)
        return

    is_real = (m < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q_row = token.to(tl.int64) * query_token_stride + (kv_head * GROUP + m) * query_head_stride
    q = tl.load(query + q_row[:, None] + d[None, :], mask=is_real, other=0.0)
    table_row = table + seq.to(tl.int64) * table_stride
    start_slot = tl.full([], 0, tl.int64)
    if not HAS_TABLE:
        start_slot = tl.load(start_slots + seq).to(tl.int64)
    head = kv_head.to(tl.int64) * head_stride

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(begin, end, TILE_N):
        positions = first + tl.arange(0, TILE_N)
        in_context = positions < end
        slots = tile_slots(positions, in_context, table_row, start_slot, PAGE_SIZE, HAS_TABLE)
        visible = tl.broadcast_to(in_context[None, :], [BLOCK_M, TILE_N])
        acc, peak, total = attend_tile(
            q,
            acc,
            peak,
            total,
            key_cache + head,
            value_cache + head,
            slots,
            in_context,
            visible,
            slot_stride,
            scale,
            softcap,
            HEAD_DIM,
            BLOCK_D,
            HAS_SOFTCAP,
            PRECISION,
        )
    tl.store(part_acc + part[:, None] * HEAD_DIM + d[None, :], acc, mask=is_real)
    tl.store(part_peak + part, peak, mask=m < GROUP)
    tl.store(part_total + part, total, mask=m < GROUP)


@triton.jit
def decode_join_kernel(
    part_acc,
    part_peak,
    part_total,
    query_start_loc,
    out,
    out_token_stride,
    out_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Join the splits of one sequence and query head; no tokens at all give zeros."""
    seq = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(query_start_loc + seq)
    if tl.load(query_start_loc + seq + 1) - token != 1:
        return
    s = tl.arange(0, NUM_SPLITS)
    d = tl.arange(0, BLOCK_D)
    part = (seq.to(tl.int64) * tl.num_programs(1) + head) * NUM_SPLITS + s
    total = tl.load(part_total + part)
    peak = tl.load(part_peak + part)
    is_empty = total == 0  # a NaN is not: it must come out as one
    highest = tl.max(tl.where(is_empty, -1e30, peak), 0)
    weight = tl.where(is_empty, 0.0, tl.exp2(peak - highest))
    inside = (total != 0)[:, None] & (d < HEAD_DIM)[None, :]
    acc = tl.load(part_acc + part[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
    whole = tl.sum(weight * total, 0)
    result = tl.sum(acc * weight[:, None], 0) / tl.where(whole == 0, 1.0, whole)
    target = out + token.to(tl.int64) * out_token_stride + head * out_head_stride + d
    tl.store(target, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)

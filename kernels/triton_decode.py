"""Decode attention in Triton: work is cut into pieces of about equal size, a second kernel joins
the pieces of a sequence.

Flash-Decoding (Dao et al., 2023) splits every sequence alike. Here a grid of fixed size shares out
the tiles of the whole batch, as FlashInfer's plan does on the host (Ye et al., 2025, section
3.3.1); it is computed on the device, so that a captured CUDA graph fits whatever the lengths
become and one long sequence beside short ones does not leave the chip idle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import triton
import triton.language as tl

from kernels.triton_tile import (
    LOWEST_LOGIT,
    attend_tiles,
    attention_constants,
    attention_types,
    rows_of_group,
)
from kernels.tuning import LEAST_BLOCK_S, attention_tuning
from kernels.variant import KernelShape, Variant


class JoinTiling(NamedTuple):
    """Pieces that are read at once, and warps."""

    block_p: int
    num_warps: int


# Two choices, so that little is compiled: a few sequences are cut into many pieces, which must be
# read in one go; of many sequences most are in one piece, and what counts is to be gone.
JOIN_FEW = JoinTiling(64, 4)
JOIN_MANY = JoinTiling(8, 1)


@triton.jit
def _piece_of_item(
    query_start_loc,
    seq_lens,
    num_seqs,
    item,
    budget,
    least_tiles,
    window,
    TILE_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """(sequence or -1, its first item, tiles a piece at most) of a work item.

    A piece is at most max(least_tiles, ceil(all tiles / budget)) tiles of one sequence; that makes
    at most budget + num_seqs pieces. A sequence without context has one piece, one that does not
    decode has none.
    """
    s = tl.arange(0, BLOCK_S)
    is_seq = s < num_seqs
    context = tl.load(seq_lens + s, mask=is_seq, other=0)
    last = tl.load(query_start_loc + s + 1, mask=is_seq, other=0)
    first = tl.load(query_start_loc + s, mask=is_seq, other=0)
    tiles = tl.maximum(_num_tiles(context, window, TILE_N, HAS_WINDOW), 1)
    tiles = tl.where(last - first == 1, tiles, 0)
    share = tl.maximum(tl.cdiv(tl.sum(tiles, 0), budget), least_tiles)
    stop = tl.cumsum(tl.cdiv(tiles, share), 0)
    is_before = stop <= item
    seq = tl.sum(is_before.to(tl.int32), 0)
    first_item = tl.max(tl.where(is_before, stop, 0), 0)
    return tl.where(seq < BLOCK_S, seq, -1), first_item, share


@triton.jit
def _num_tiles(context, window, TILE_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    if HAS_WINDOW:
        return tl.cdiv(context, TILE_N) - tl.maximum(context - window, 0) // TILE_N
    return tl.cdiv(context, TILE_N)


@triton.jit(do_not_specialize=["window", "table_stride", "num_seqs", "budget", "least_tiles"])
def decode_kernel(
    query,
    key_cache,
    value_cache,
    table,
    start_slots,
    query_start_loc,
    seq_lens,
    out,
    part_acc,
    part_lse,
    plan,
    query_token_stride,
    query_head_stride,
    out_token_stride,
    out_head_stride,
    slot_stride,
    head_stride,
    table_stride,
    num_seqs,
    budget,
    least_tiles,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One piece of one sequence and KV head; the rows of the tile are the queries of the group.

    Grid: (KV heads, work items). Without splits an item is a whole sequence. A sequence in one
    piece goes to `out` at once; any other to part_acc (items, q heads, HEAD_DIM) and part_lse
    (items, q heads), the base-2 logarithm of the sum of weights, all float32. plan (num_seqs, 2),
    int32, is each decoding sequence's first item and number of pieces. Sequences with a query
    count other than 1 are left alone.
    """
    # heads side by side: programs that run together read neighbouring bytes of the same slots
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    seq = item
    first_item = item
    share = 1
    if HAS_SPLITS:
        seq, first_item, share = _piece_of_item(
            query_start_loc,
            seq_lens,
            num_seqs,
            item,
            budget,
            least_tiles,
            window,
            TILE_N,
            HAS_WINDOW,
            BLOCK_S,
        )
        if seq < 0:
            return
    else:
        if tl.load(query_start_loc + seq + 1) - tl.load(query_start_loc + seq) != 1:
            return
    token = tl.load(query_start_loc + seq)
    context = tl.load(seq_lens + seq)
    lowest = 0
    if HAS_WINDOW:
        lowest = tl.maximum(context - window, 0)
    begin = lowest // TILE_N * TILE_N
    stop = context
    num_pieces = 1
    if HAS_SPLITS:
        tiles = tl.maximum(_num_tiles(context, window, TILE_N, HAS_WINDOW), 1)
        num_pieces = tl.cdiv(tiles, share)
        # the pieces of a sequence are as equal as its tiles allow
        piece = item - first_item
        stop = tl.minimum(begin + tiles * (piece + 1) // num_pieces * TILE_N, context)
        begin += tiles * piece // num_pieces * TILE_N
        if (kv_head == 0) & (piece == 0):
            tl.store(plan + 2 * seq, first_item)
            tl.store(plan + 2 * seq + 1, num_pieces)

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + m
    is_real = (m < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q_row = token.to(tl.int64) * query_token_stride + heads * query_head_stride
    q = tl.load(query + q_row[:, None] + d[None, :], mask=is_real, other=0.0)
    start_slot = tl.full([], 0, tl.int64)
    if not HAS_TABLE:
        start_slot = tl.load(start_slots + seq).to(tl.int64)
    head = kv_head.to(tl.int64) * head_stride

    # Every tile is masked: that is 56 of 404 instructions of the loop at Llama 3.1 8B's shape on
    # sm_90 (page 16), and a last tile of its own would be loaded after the others, not with them.
    acc, peak, total = attend_tiles(
        q,
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], LOWEST_LOGIT, tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        key_cache + head,
        value_cache + head,
        table + seq.to(tl.int64) * table_stride,
        start_slot,
        slot_stride,
        m,
        begin,
        stop,
        lowest,
        context,
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
        True,
        False,
        PRECISION,
    )
    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    if num_pieces == 1:
        out_row = token.to(tl.int64) * out_token_stride + heads * out_head_stride
        target = out + out_row[:, None] + d[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=is_real)
    else:
        part = item.to(tl.int64) * tl.num_programs(0) * GROUP + heads
        tl.store(part_acc + part[:, None] * HEAD_DIM + d[None, :], result, mask=is_real)
        tl.store(part_lse + part, peak + tl.log2(total), mask=m < GROUP)


@triton.jit
def join_kernel(
    part_acc,
    part_lse,
    plan,
    query_start_loc,
    out,
    out_token_stride,
    out_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Join the pieces of one sequence and query head, BLOCK_P at a time; one piece is done with.

    Grid: (q heads, num_seqs).
    """
    head = tl.program_id(0)
    seq = tl.program_id(1)
    token = tl.load(query_start_loc + seq)
    if tl.load(query_start_loc + seq + 1) - token != 1:
        return
    num_pieces = tl.load(plan + 2 * seq + 1)
    if num_pieces == 1:
        return
    first_item = tl.load(plan + 2 * seq).to(tl.int64)
    p = tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = tl.full([], 0.0, tl.float32)
    peak = tl.full([], LOWEST_LOGIT, tl.float32)
    for first in range(0, num_pieces, BLOCK_P):
        is_piece = first + p < num_pieces
        part = (first_item + first + p) * tl.num_programs(0) + head
        lse = tl.load(part_lse + part, mask=is_piece, other=float("-inf"))
        inside = is_piece[:, None] & (d < HEAD_DIM)[None, :]
        some = tl.load(part_acc + part[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        weights = tl.exp2(lse - new_peak)
        shrink = tl.exp2(peak - new_peak)
        acc = acc * shrink + tl.sum(some * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        peak = new_peak
    target = out + token.to(tl.int64) * out_token_stride + head * out_head_stride + d
    tl.store(target, (acc / total).to(out.dtype.element_ty), mask=d < HEAD_DIM)


def variants(shape: KernelShape) -> Iterator[Variant]:
    """The decode kernel with and without splits, and the join for few and for many sequences.

    The pieces of up to 128 sequences are found in one look at the lengths; page size 16 stands for
    all in the look at 256, which is the default of engine.max_num_seqs.
    """
    tuning = attention_tuning(shape.head_dim, shape.dtype, shape.capability).decode
    constants = attention_constants(shape) | {
        "BLOCK_M": rows_of_group(shape.group),
        "BLOCK_S": LEAST_BLOCK_S,
        "TILE_N": tuning.tile_n,
    }
    parts = {"part_acc": "*fp32:16", "part_lse": "*fp32:16", "plan": "*i32:16"}
    types = attention_types(shape) | parts | {"budget": "i32", "least_tiles": "i32"}
    for has_splits in (True, False):
        choice = constants | {"HAS_SPLITS": has_splits}
        yield Variant(decode_kernel, types, choice, tuning.num_warps, tuning.num_stages)
    if shape.page_size == 16:
        choice = constants | {"HAS_SPLITS": True, "BLOCK_S": 2 * LEAST_BLOCK_S}
        yield Variant(decode_kernel, types, choice, tuning.num_warps, tuning.num_stages)
    names = (*parts, "query_start_loc", "out", "out_token_stride", "out_head_stride")
    join_types = {name: types[name] for name in names}
    for tiling in (JOIN_FEW, JOIN_MANY):
        choice = {name: constants[name] for name in ("HEAD_DIM", "BLOCK_D")}
        choice["BLOCK_P"] = tiling.block_p
        yield Variant(join_kernel, join_types, choice, tiling.num_warps)

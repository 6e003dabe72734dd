"""What the Triton attention kernels share: where a tile of KV lies, and the steps over tiles.

A tile is TILE_N positions that begin at a multiple of TILE_N, so it lies within one page or covers
whole pages: there is one table lookup a page and none a token, and the addresses of a page's rows
are one 64-bit base and 32-bit offsets.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.variant import KernelShape

# Below every logit, and finite: a row that sees nothing of its first tile needs no case of its own.
LOWEST_LOGIT = tl.constexpr(-3.0e38)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_pages(
    table_row,
    first,
    num_pages,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):
    """Ids of the pages under the tile that begins at position `first`: a scalar where the tile lies
    within a page, else one for each of its pages. Only the table's first num_pages are read."""
    pages = 0
    if HAS_TABLE:
        index = first // PAGE_SIZE
        if PAGE_SIZE < TILE_N:
            index += tl.arange(0, TILE_N // PAGE_SIZE)
        pages = tl.load(table_row + index, mask=index < num_pages, other=0)
    return pages


@triton.jit
def tile_offsets(
    pages,
    first,
    start_slot,
    slot_stride,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):
    """A tile's rows in the cache as (int64 base, offsets (TILE_N) from it), in elements.

    Within a page, and without a table, offsets are int32 and the same for every tile.
    """
    if HAS_TABLE and PAGE_SIZE < TILE_N:
        base = tl.full([], 0, tl.int64)
        slots = pages.to(tl.int64) * PAGE_SIZE
        if PAGE_SIZE > 1:
            slots = tl.reshape(slots[:, None] + tl.arange(0, PAGE_SIZE)[None, :], [TILE_N])
        # multiplied last: the stride's divisibility, and so wide loads, would not outlive a reshape
        rows = slots * slot_stride
    else:
        slot = start_slot + first
        if HAS_TABLE:
            slot = pages.to(tl.int64) * PAGE_SIZE + first % PAGE_SIZE
        base = slot * slot_stride
        rows = tl.arange(0, TILE_N) * slot_stride
    return base, rows


@triton.jit
def load_rows(
    cache,
    rows,
    in_context,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """(TILE_N, BLOCK_D) of one head's keys or values; what is masked reads as 0 and not at all."""
    d = tl.arange(0, BLOCK_D)
    pointers = cache + rows[:, None] + d[None, :]
    if MASKED:
        if HEAD_DIM == BLOCK_D:
            tile = tl.load(pointers, mask=in_context[:, None], other=0.0)
        else:
            inside = in_context[:, None] & (d < HEAD_DIM)[None, :]
            tile = tl.load(pointers, mask=inside, other=0.0)
    else:
        if HEAD_DIM == BLOCK_D:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(d < HEAD_DIM)[None, :], other=0.0)
    return tile


@triton.jit
def attend_tiles(
    q,
    acc,
    peak,
    total,
    key_head,
    value_head,
    table_row,
    start_slot,
    slot_stride,
    q_positions,
    begin,
    stop,
    lowest,
    end,
    scale,
    softcap,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_N: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax (FlashAttention-2; Dao, 2023, algorithm 1) over the tiles in [begin, stop).

    q (M, BLOCK_D); begin is a multiple of TILE_N. acc, peak and total are the running sum of
    weighted values, the largest base-2 logit and the sum of weights, and are returned. Positions
    outside of [lowest, end) are never read if MASKED, and else promised not to occur; MASKED and
    CAUSAL also apply q_positions (M) and the window to each row. Pages are looked up one tile
    ahead, so that the copies of keys and values, which the compiler pipelines over num_stages,
    never wait for the table.
    """
    num_pages = tl.cdiv(end, PAGE_SIZE)
    pages = load_pages(table_row, begin, num_pages, TILE_N, PAGE_SIZE, HAS_TABLE)
    for first in tl.range(begin, stop, TILE_N):
        next_pages = load_pages(table_row, first + TILE_N, num_pages, TILE_N, PAGE_SIZE, HAS_TABLE)
        base, rows = tile_offsets(
            pages, first, start_slot, slot_stride, TILE_N, PAGE_SIZE, HAS_TABLE
        )
        pages = next_pages
        positions = first + tl.arange(0, TILE_N)
        in_context = positions < end
        if HAS_WINDOW:
            in_context &= positions >= lowest
        k = load_rows(key_head + base, rows, in_context, HEAD_DIM, BLOCK_D, MASKED)
        v = load_rows(value_head + base, rows, in_context, HEAD_DIM, BLOCK_D, MASKED)
        logits = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
        if HAS_SOFTCAP:
            # tanh(x) = 1 - 2 / (e^2x + 1)
            power = tl.exp2(logits * (scale * 2.0 * LOG2_E / softcap))
            logits = softcap * LOG2_E * (1.0 - 2.0 / (power + 1.0))
        else:
            logits *= scale * LOG2_E
        if MASKED:
            if CAUSAL:
                behind = q_positions[:, None] - positions[None, :]
                visible = behind >= 0
                if HAS_WINDOW:
                    visible &= behind < window
            else:
                visible = in_context[None, :]
            logits = tl.where(visible, logits, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(q.dtype)
        acc = tl.dot(weights, v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


def rows_of_group(group: int) -> int:
    """Rows of a tensor-core tile that hold the queries of a group."""
    return max(16, triton.next_power_of_2(group))


def attention_constants(shape: KernelShape) -> dict[str, Any]:
    """Compile-time values that the decode and the prefill kernel share."""
    return {
        "GROUP": shape.group,
        "HEAD_DIM": shape.head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(shape.head_dim)),
        "PAGE_SIZE": shape.page_size or 1,
        "HAS_TABLE": shape.page_size is not None,
        "HAS_WINDOW": shape.window,
        "HAS_SOFTCAP": shape.softcap,
        "PRECISION": "tf32x3" if shape.dtype == torch.float32 else "ieee",
    }


def attention_types(shape: KernelShape) -> dict[str, str]:
    """Types of the arguments that the decode and the prefill kernel share, as launched over whole
    tensors of such a shape."""
    tensors = dict.fromkeys(("query", "key_cache", "value_cache", "out"), f"*{shape.element}:16")
    maps = dict.fromkeys(("table", "start_slots", "query_start_loc", "seq_lens"), "*i32:16")
    heads = ("query_token_stride", "query_head_stride", "out_token_stride", "out_head_stride")
    strides = dict.fromkeys((*heads, "slot_stride", "head_stride"), "i32:16")
    others = {"table_stride": "i32", "num_seqs": "i32", "window": "i32"}
    return tensors | maps | strides | others | {"scale": "fp32", "softcap": "fp32"}

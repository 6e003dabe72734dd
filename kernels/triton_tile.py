"""What the Triton attention kernels share: from positions to slots, and one step over a KV tile."""

import triton
import triton.language as tl


@triton.jit
def tile_slots(
    positions, in_context, table_row, start_slot, PAGE_SIZE: tl.constexpr, HAS_TABLE: tl.constexpr
):
    """Slots (int64) of a sequence's positions; what lies out of context is never looked up."""
    if HAS_TABLE:
        pages = tl.load(table_row + positions // PAGE_SIZE, mask=in_context, other=0)
        return pages.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE
    return start_slot + positions


@triton.jit
def attend_tile(
    q,
    acc,
    peak,
    total,
    key_head,
    value_head,
    slots,
    in_context,
    visible,
    slot_stride,
    scale,
    softcap,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One online-softmax step (FlashAttention-2; Dao, 2023, algorithm 1) over a tile of tokens.

    q (M, BLOCK_D); slots, in_context (N); visible (M, N). acc, peak and total are the running
    sum of weighted values, the largest base-2 logit and the sum of weights, and are returned.
    """
    d = tl.arange(0, BLOCK_D)
    inside = in_context[:, None] & (d < HEAD_DIM)[None, :]
    offsets = slots[:, None] * slot_stride + d[None, :]
    k = tl.load(key_head + offsets, mask=inside, other=0.0)
    v = tl.load(value_head + offsets, mask=inside, other=0.0)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (e^2x + 1)
        logits = softcap * (
            1.0 - 2.0 / (tl.exp2(logits * (2.0 * 1.4426950408889634 / softcap)) + 1.0)
        )
    logits = tl.where(visible, logits * 1.4426950408889634, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    finite_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(logits - finite_peak[:, None])
    shrink = tl.exp2(peak - finite_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return acc, new_peak, total

"""RoPE of queries and keys together with the store of keys and values, in Triton."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from kernels.variant import KernelShape, Variant

_MOST_HEADS = 8
_ELEMENTS_PER_THREAD = 8


@triton.jit
def _turn_heads(
    source,
    destination,
    weight,
    cos_sin,
    eps,
    inside,
    offsets,
    i,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Some heads, (HEADS, BLOCK) of each half, from a token's row to where they belong."""
    left = tl.load(source + offsets, mask=inside, other=0.0)
    right = tl.load(source + offsets + HALF, mask=inside, other=0.0)
    dtype = left.dtype
    left, right = left.to(tl.float32), right.to(tl.float32)
    column = i < HALF
    if HAS_NORM:
        mean = (tl.sum(left * left, 1) + tl.sum(right * right, 1)) / (2 * HALF)
        scale = tl.rsqrt(mean + eps)[:, None]
        w_left = tl.load(weight + i, mask=column, other=0.0).to(tl.float32)[None, :]
        w_right = tl.load(weight + HALF + i, mask=column, other=0.0).to(tl.float32)[None, :]
        left = (left * scale * w_left).to(dtype).to(tl.float32)
        right = (right * scale * w_right).to(dtype).to(tl.float32)
    cos = tl.load(cos_sin + i, mask=column, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(cos_sin + HALF + i, mask=column, other=0.0).to(tl.float32)[None, :]
    # rounded to the model's type first, whatever the cache's: as without fusion
    new_left = (left * cos - right * sin).to(dtype).to(destination.dtype.element_ty)
    new_right = (right * cos + left * sin).to(dtype).to(destination.dtype.element_ty)
    tl.store(destination + offsets, new_left, mask=inside)
    tl.store(destination + offsets + HALF, new_right, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def rope_store_kernel(
    qkv,
    cos_sin,
    query,
    key_cache,
    value_cache,
    slot_mapping,
    q_weight,
    k_weight,
    eps,
    qkv_stride,
    cos_sin_stride,
    query_stride,
    slot_stride,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """HEADS heads of one token: of its queries, its keys or its values, by the second index."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    HALF: tl.constexpr = HEAD_DIM // 2
    Q_PARTS: tl.constexpr = (NUM_Q_HEADS + HEADS - 1) // HEADS
    KV_PARTS: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    h = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, BLOCK)
    offsets = h * HEAD_DIM + i[None, :]
    row = qkv + token * qkv_stride
    angles = cos_sin + token * cos_sin_stride
    if part < Q_PARTS:
        first = part * HEADS
        inside = (first + h < NUM_Q_HEADS) & (i < HALF)[None, :]
        source = row + first * HEAD_DIM
        target = query + token * query_stride + first * HEAD_DIM
        _turn_heads(source, target, q_weight, angles, eps, inside, offsets, i, HALF, HAS_NORM)
    else:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        if slot >= 0:
            if part < Q_PARTS + KV_PARTS:
                first = (part - Q_PARTS) * HEADS
                inside = (first + h < NUM_KV_HEADS) & (i < HALF)[None, :]
                source = row + (NUM_Q_HEADS + first) * HEAD_DIM
                target = key_cache + slot * slot_stride + first * HEAD_DIM
                _turn_heads(
                    source, target, k_weight, angles, eps, inside, offsets, i, HALF, HAS_NORM
                )
            else:
                first = (part - Q_PARTS - KV_PARTS) * HEADS
                inside = (first + h < NUM_KV_HEADS) & (i < HALF)[None, :]
                source = row + (NUM_Q_HEADS + NUM_KV_HEADS + first) * HEAD_DIM
                target = value_cache + slot * slot_stride + first * HEAD_DIM
                left = tl.load(source + offsets, mask=inside)
                right = tl.load(source + offsets + HALF, mask=inside)
                dtype = value_cache.dtype.element_ty
                tl.store(target + offsets, left.to(dtype), mask=inside)
                tl.store(target + offsets + HALF, right.to(dtype), mask=inside)


def rope_store(
    qkv: Tensor,
    cos_sin: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """See `reference_layer.rope_store`; one launch. All but the first dimension must be dense."""
    num_tokens, num_q_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[1]
    if num_tokens == 0:
        return query
    has_norm = q_weight is not None and k_weight is not None
    constants, num_warps = rope_constants(num_q_heads, num_kv_heads, head_dim)
    parts = sum(-(-n // constants["HEADS"]) for n in (num_q_heads, num_kv_heads, num_kv_heads))
    rope_store_kernel[(num_tokens, parts)](
        qkv,
        cos_sin,
        query,
        key_cache,
        value_cache,
        slot_mapping,
        q_weight if has_norm else qkv,
        k_weight if has_norm else qkv,
        eps,
        qkv.stride(0),
        cos_sin.stride(0),
        query.stride(0),
        key_cache.stride(0),
        **constants,
        HAS_NORM=has_norm,
        num_warps=num_warps,
    )
    return query


def rope_constants(
    num_q_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[dict[str, int], int]:
    """Compile-time sizes and warps: a thread loads 16 bytes of each half in 16-bit types."""
    heads = min(_MOST_HEADS, triton.next_power_of_2(num_q_heads))
    block = triton.next_power_of_2(head_dim // 2)
    constants = {
        "NUM_Q_HEADS": num_q_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HEADS": heads,
        "BLOCK": block,
    }
    return constants, min(8, max(1, heads * block // (32 * _ELEMENTS_PER_THREAD)))


def variants(shape: KernelShape) -> Iterator[Variant]:
    """With and without RMSNorm of the heads."""
    names = ("qkv", "cos_sin", "query", "key_cache", "value_cache", "q_weight", "k_weight")
    types = dict.fromkeys(names, f"*{shape.element}:16") | {"slot_mapping": "*i64"}
    strides = ("qkv_stride", "cos_sin_stride", "query_stride", "slot_stride")
    types |= dict.fromkeys(strides, "i32:16") | {"eps": "fp32"}
    constants, warps = rope_constants(shape.num_q_heads, shape.num_kv_heads, shape.head_dim)
    for has_norm in (False, True):
        yield Variant(rope_store_kernel, types, constants | {"HAS_NORM": has_norm}, warps)

"""Writes to the KV cache in Triton: new tokens, and copies of whole pages."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from kernels.variant import KernelShape, Variant


@triton.jit
def store_kv_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    key_stride,
    value_stride,
    slot_stride,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's keys and values (ROW elements each) to its slot; slot -1 is skipped."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:
        return
    i = tl.arange(0, BLOCK)
    k = tl.load(key + token * key_stride + i, mask=i < ROW)
    v = tl.load(value + token * value_stride + i, mask=i < ROW)
    tl.store(key_cache + slot * slot_stride + i, k.to(key_cache.dtype.element_ty), mask=i < ROW)
    tl.store(value_cache + slot * slot_stride + i, v.to(value_cache.dtype.element_ty), mask=i < ROW)


@triton.jit
def copy_rows_kernel(
    source,
    destination,
    source_ids,
    destination_ids,
    source_layer_stride,
    destination_layer_stride,
    id_stride,
    row_size,
    GATHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Part of a row of `row_size` elements, of one layer, from or to a staging buffer.

    GATHER: row source_ids[i] becomes row i; otherwise row i becomes row destination_ids[i].
    """
    i = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if GATHER:
        from_row = tl.load(source_ids + i * id_stride).to(tl.int64)
        to_row = i
    else:
        from_row = i
        to_row = tl.load(destination_ids + i * id_stride).to(tl.int64)
    start = source + layer * source_layer_stride + from_row * row_size
    target = destination + layer * destination_layer_stride + to_row * row_size
    tl.store(
        target + column, tl.load(start + column, mask=column < row_size), mask=column < row_size
    )


def store_kv(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """See `reference.store_kv`."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    row = num_kv_heads * head_dim
    key, value = _dense_rows(key), _dense_rows(value)
    store_kv_kernel[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        key.stride(0),
        value.stride(0),
        key_cache.stride(0),
        ROW=row,
        BLOCK=triton.next_power_of_2(row),
    )


def _dense_rows(tokens: Tensor) -> Tensor:
    """`tokens` with heads and head dimension side by side; a slice of a fused projection is."""
    _, heads, dim = tokens.shape
    dense = tokens.stride(2) == 1 and (tokens.stride(1) == dim or heads == 1)
    return tokens if dense else tokens.contiguous()


def copy_pages(key_cache: Tensor, value_cache: Tensor, copies: Tensor, page_size: int) -> None:
    """See `reference.copy_pages`.

    Sources go to a staging buffer first: one copy's source may be another's destination, and
    programs of one launch run in no order.
    """
    num_copies = copies.shape[0]
    if num_copies == 0:
        return
    for cache in (key_cache, value_cache):
        layers = cache.unsqueeze(0) if cache.dim() == 3 else cache.flatten(0, -4)
        num_layers, _, num_kv_heads, head_dim = layers.shape
        row_size = page_size * num_kv_heads * head_dim
        staging = cache.new_empty((num_layers, num_copies, row_size))
        block = min(4096, triton.next_power_of_2(row_size))
        grid = (num_copies, num_layers, triton.cdiv(row_size, block))
        sources, destinations = copies[:, 0], copies[:, 1]
        for gather in (True, False):
            ends = (layers, staging) if gather else (staging, layers)
            copy_rows_kernel[grid](
                *ends,
                sources,
                destinations,
                *(end.stride(0) for end in ends),
                copies.stride(0),
                row_size,
                GATHER=gather,
                BLOCK=block,
            )


def variants(shape: KernelShape) -> Iterator[Variant]:
    """Storing a token, and gathering and scattering pages."""
    pointer = f"*{shape.element}:16"
    row = shape.num_kv_heads * shape.head_dim
    strides = dict.fromkeys(("key_stride", "value_stride", "slot_stride"), "i32:16")
    tensors = dict.fromkeys(("key", "value", "key_cache", "value_cache"), pointer)
    types = tensors | {"slot_mapping": "*i64:16"} | strides
    yield Variant(store_kv_kernel, types, {"ROW": row, "BLOCK": triton.next_power_of_2(row)})
    ids = dict.fromkeys(("source_ids", "destination_ids"), "*i64")
    sizes = ("source_layer_stride", "destination_layer_stride", "row_size")
    types = dict.fromkeys(("source", "destination"), pointer) | ids
    types |= dict.fromkeys(sizes, "i32:16") | {"id_stride": "i32"}
    for gather in (True, False):
        yield Variant(copy_rows_kernel, types, {"GATHER": gather, "BLOCK": 4096})

"""Writes to the KV cache in Triton: new tokens, and copies of whole pages."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from kernels.variant import KernelShape, Variant


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
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


@triton.jit(do_not_specialize=["num_staged"], do_not_specialize_on_alignment=["pages"])
def copy_pages_kernel(
    source_keys,
    source_values,
    staged_keys,
    staged_values,
    destination_keys,
    destination_values,
    pages,
    num_staged,
    source_layer_stride,
    staged_layer_stride,
    destination_layer_stride,
    row_size,
    GATHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Part of one page, `row_size` elements, of one layer's keys or values.

    pages: (n, 2) of (source, destination). GATHER: page `source` of the source becomes row i of
    the destination. Otherwise it becomes page `destination`; the first `num_staged` are read
    from the rows of the staging buffer.
    """
    i = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(1)
    layer = (plane // 2).to(tl.int64)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = column < row_size
    is_key = plane % 2 == 0
    from_row = tl.load(pages + 2 * i).to(tl.int64)
    to_row = i
    if not GATHER:
        to_row = tl.load(pages + 2 * i + 1).to(tl.int64)
    if is_key:
        start = source_keys + layer * source_layer_stride + from_row * row_size
        target = destination_keys
    else:
        start = source_values + layer * source_layer_stride + from_row * row_size
        target = destination_values
    if not GATHER and i < num_staged:
        if is_key:
            start = staged_keys + layer * staged_layer_stride + i * row_size
        else:
            start = staged_values + layer * staged_layer_stride + i * row_size
    target += layer * destination_layer_stride + to_row * row_size
    tl.store(target + column, tl.load(start + column, mask=inside), mask=inside)


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


def copy_pages(
    key_cache: Tensor,
    value_cache: Tensor,
    copies: Tensor,
    page_size: int,
    num_staged: int | None = None,
) -> None:
    """See `reference.copy_pages`. One launch for all layers' keys and values where no copy needs
    staging, else two: programs of one launch run in no order, so that a page which is a source
    and a destination has to be read in a launch of its own."""
    num_copies = copies.shape[0]
    if num_copies == 0:
        return
    num_staged = num_copies if num_staged is None else num_staged
    pool = (_layers(key_cache), _layers(value_cache))
    if pool[0].stride() != pool[1].stride():
        raise ValueError(
            f"key and value caches with strides {key_cache.stride()} and {value_cache.stride()}: "
            "the Triton kernels need equal ones"
        )
    row_size = page_size * key_cache.shape[-2] * key_cache.shape[-1]
    staging = pool
    if num_staged:
        rows = key_cache.new_empty((2, pool[0].shape[0], num_staged, row_size))
        staging = (rows[0], rows[1])
        _launch_copy(pool, pool, staging, copies[:num_staged], 0, row_size, gather=True)
    _launch_copy(pool, staging, pool, copies, num_staged, row_size, gather=False)


def move_pages(source: Tensor, destination: Tensor, moves: Tensor, page_size: int) -> None:
    """Pages of one pool to another's, all layers' keys and values in one launch.

    source, destination: (layers, 2, num_slots, num_kv_heads, head_dim). moves: int64 (n, 2) of
    (page of source, page of destination). On a GPU either may lie in pinned host memory, which
    the device reads and writes in place; no page is a destination twice.
    """
    if moves.shape[0] == 0:
        return
    ends = [(pool[:, 0], pool[:, 1]) for pool in (source, destination)]
    row_size = page_size * source.shape[-2] * source.shape[-1]
    _launch_copy(ends[0], ends[0], ends[1], moves, 0, row_size, gather=False)


def _launch_copy(
    source: tuple[Tensor, Tensor],
    staging: tuple[Tensor, Tensor],
    destination: tuple[Tensor, Tensor],
    pages: Tensor,
    num_staged: int,
    row_size: int,
    *,
    gather: bool,
) -> None:
    """source, staging, destination: keys and values, whose first dimension is the layer."""
    num_layers = source[0].shape[0]
    block = copy_block(row_size)
    copy_pages_kernel[(pages.shape[0], 2 * num_layers, triton.cdiv(row_size, block))](
        *source,
        *staging,
        *destination,
        pages,
        num_staged,
        source[0].stride(0),
        staging[0].stride(0),
        destination[0].stride(0),
        row_size,
        GATHER=gather,
        BLOCK=block,
    )


def copy_block(row_size: int) -> int:
    """Elements of a page that one program copies: 64 bytes a thread in 16-bit types."""
    return min(4096, triton.next_power_of_2(row_size))


def _layers(cache: Tensor) -> Tensor:
    """(layers, num_slots, num_kv_heads, head_dim)."""
    return cache.unsqueeze(0) if cache.dim() == 3 else cache.flatten(0, -4)


def variants(shape: KernelShape) -> Iterator[Variant]:
    """Storing a token; gathering pages to the staging buffer, and writing them."""
    pointer = f"*{shape.element}:16"
    row = shape.num_kv_heads * shape.head_dim
    strides = dict.fromkeys(("key_stride", "value_stride", "slot_stride"), "i32:16")
    tensors = dict.fromkeys(("key", "value", "key_cache", "value_cache"), pointer)
    types = tensors | {"slot_mapping": "*i64"} | strides
    yield Variant(store_kv_kernel, types, {"ROW": row, "BLOCK": triton.next_power_of_2(row)})
    places = ("source", "staged", "destination")
    types = dict.fromkeys((f"{place}_{kind}" for place in places for kind in _KINDS), pointer)
    types |= {"pages": "*i64", "num_staged": "i32", "row_size": "i32:16"}
    types |= dict.fromkeys((f"{place}_layer_stride" for place in places), "i64:16")
    block = copy_block(row * (shape.page_size or 1))
    for gather in (True, False):
        yield Variant(copy_pages_kernel, types, {"GATHER": gather, "BLOCK": block})


_KINDS = ("keys", "values")

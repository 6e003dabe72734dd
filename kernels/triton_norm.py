"""RMSNorm together with the residual's addition, in Triton."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from kernels.variant import KernelShape, Variant

_ELEMENTS_PER_THREAD = 16
"""Two loads of 16 bytes a tensor in 16-bit types: enough in flight, few enough to stay in
registers while the row's sum is formed."""


@triton.jit(do_not_specialize_on_alignment=["rows"])
def add_rms_norm_kernel(
    hidden,
    added,
    weight,
    out,
    rows,
    eps,
    hidden_stride,
    added_stride,
    out_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ADDED: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """One row: read once, kept in registers, added to and written back unless HAS_ROWS."""
    row = tl.program_id(0).to(tl.int64)
    token = row
    if HAS_ROWS:
        token = tl.load(rows + row).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    x = tl.load(hidden + token * hidden_stride + i, mask=inside, other=0.0)
    if HAS_ADDED:
        more = tl.load(added + token * added_stride + i, mask=inside, other=0.0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(hidden.dtype.element_ty)
        if not HAS_ROWS:
            tl.store(hidden + token * hidden_stride + i, x, mask=inside)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    normed = x * scale * w
    tl.store(out + row * out_stride + i, normed.to(out.dtype.element_ty), mask=inside)


def add_rms_norm(
    hidden: Tensor,
    added: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """See `reference_layer.add_rms_norm`; one launch. Rows must be dense."""
    num_rows, width = out.shape
    if num_rows == 0:
        return out
    block = triton.next_power_of_2(width)
    add_rms_norm_kernel[(num_rows,)](
        hidden,
        hidden if added is None else added,
        weight,
        out,
        hidden if rows is None else rows,
        eps,
        hidden.stride(0),
        hidden.stride(0) if added is None else added.stride(0),
        out.stride(0),
        WIDTH=width,
        BLOCK=block,
        HAS_ADDED=added is not None,
        HAS_ROWS=rows is not None,
        num_warps=norm_warps(block),
    )
    return out


def norm_warps(block: int) -> int:
    """Warps of a program that keeps a row of `block` elements in registers."""
    return min(16, max(1, block // (32 * _ELEMENTS_PER_THREAD)))


def variants(shape: KernelShape) -> Iterator[Variant]:
    """The first norm of a forward pass, those between its layers, and that of the sampled rows."""
    types = dict.fromkeys(("hidden", "added", "weight", "out"), f"*{shape.element}:16")
    types |= {"rows": "*i64", "eps": "fp32"}
    types |= dict.fromkeys(("hidden_stride", "added_stride", "out_stride"), "i32:16")
    width, block = shape.hidden_size, triton.next_power_of_2(shape.hidden_size)
    for has_added, has_rows in ((False, False), (True, False), (True, True)):
        constants = {"WIDTH": width, "BLOCK": block, "HAS_ADDED": has_added, "HAS_ROWS": has_rows}
        yield Variant(add_rms_norm_kernel, types, constants, norm_warps(block))

"""The MLP's activation in Triton, out of the merged gate-up projection's output."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from kernels.variant import KernelShape, Variant

_BLOCK = 1024
_NUM_WARPS = 4
"""8 elements a thread: one load of 16 bytes for gate and up each in 16-bit types."""


@triton.jit
def silu_mul_kernel(
    gate_up,
    out,
    gate_up_stride,
    out_stride,
    width,
    BLOCK: tl.constexpr,
):
    """Part of a row: silu(gate) * up, gates in the first `width` columns."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    start = gate_up + row * gate_up_stride
    gate = tl.load(start + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + i, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + i, product.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor, out: Tensor) -> Tensor:
    """See `reference_layer.silu_mul`; one launch. Rows must be dense."""
    num_rows, width = out.shape
    if num_rows == 0:
        return out
    silu_mul_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
        gate_up,
        out,
        gate_up.stride(0),
        out.stride(0),
        width,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out


def variants(shape: KernelShape) -> Iterator[Variant]:
    """A model's MLP."""
    types = dict.fromkeys(("gate_up", "out"), f"*{shape.element}:16")
    types |= dict.fromkeys(("gate_up_stride", "out_stride", "width"), "i32:16")
    yield Variant(silu_mul_kernel, types, {"BLOCK": _BLOCK}, _NUM_WARPS)

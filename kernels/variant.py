"""What a kernel module says of its Triton kernels, so that they can be compiled for a GPU that is
not there: `variants(shape)`, one `Variant` for each kernel and choice of compile-time values that
its launchers make for such a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class KernelShape(NamedTuple):
    """What a model, its KV pool and a GPU (capability 90: sm_90) ask of the kernels.

    page_size None: KV without a table.
    """

    dtype: torch.dtype
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    page_size: int | None = 16
    window: bool = False
    softcap: bool = False
    capability: int = 90

    @property
    def group(self) -> int:
        return self.num_q_heads // self.num_kv_heads

    @property
    def element(self) -> str:
        """The dtype's name in a Triton signature."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return names[self.dtype]


class Variant(NamedTuple):
    """A kernel with its compile-time values.

    types: for each argument that is not a constant its type as `triton.tools.compile` writes it:
    "*bf16:16" is a pointer and "i32:16" a number divisible by 16, which the compiler is told as
    the launcher would tell it; "i32" and "fp32" are any.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3

"""A layer's element-wise work: one interface, in torch's own operations or in fused kernels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from harness.engine.device.attention import AttentionStep
from harness.engine.device.lean.buffers import Buffers
from harness.engine.device.lean.layers import HeadNorms, Norm


class Operations(Protocol):
    """`kernels.reference_layer` says what is computed; `buffers` is where results go."""

    @property
    def name(self) -> str: ...

    def add_norm(
        self,
        hidden: Tensor,
        added: Tensor | None,
        norm: Norm,
        buffers: Buffers,
        rows: Tensor | None = None,
    ) -> Tensor:
        """hidden += added; the normalised sum, of `rows` alone where they are given (`hidden`
        then need not hold the sum afterwards)."""
        ...

    def rope_store(
        self,
        layer: int,
        qkv: Tensor,
        cos_sin: Tensor,
        head_norms: HeadNorms | None,
        query: Tensor,
        step: AttentionStep,
        buffers: Buffers,
    ) -> None:
        """Rotated queries to `query` (T, Hq, D), rotated keys and values to the step's slots."""
        ...

    def silu_mul(self, gate_up: Tensor, buffers: Buffers) -> Tensor:
        """silu(gate) * up, (T, width); `gate_up` (T, 2 width) may be overwritten."""
        ...


class TorchOperations:
    """Torch's own: what other implementations are checked against."""

    name = "torch"

    def add_norm(
        self,
        hidden: Tensor,
        added: Tensor | None,
        norm: Norm,
        buffers: Buffers,
        rows: Tensor | None = None,
    ) -> Tensor:
        if added is not None:
            hidden.add_(added)
        x = hidden if rows is None else hidden.index_select(0, rows)
        return _rms_norm(x, norm.weight, norm.eps)

    def rope_store(
        self,
        layer: int,
        qkv: Tensor,
        cos_sin: Tensor,
        head_norms: HeadNorms | None,
        query: Tensor,
        step: AttentionStep,
        buffers: Buffers,
    ) -> None:
        num_tokens, num_q_heads, head_dim = query.shape
        heads = qkv.view(num_tokens, -1, head_dim)
        num_kv_heads = (heads.shape[1] - num_q_heads) // 2
        sizes = (num_q_heads, num_kv_heads)
        turning, value = heads.split_with_sizes((sum(sizes), num_kv_heads), dim=1)
        if head_norms is not None:
            q_heads, k_heads = turning.split_with_sizes(sizes, dim=1)
            q_heads = _rms_norm(q_heads, head_norms.q_weight, head_norms.eps)
            k_heads = _rms_norm(k_heads, head_norms.k_weight, head_norms.eps)
            turning = torch.cat((q_heads, k_heads), dim=1)
        out = buffers.take("rotated", num_tokens, turning.shape[1] * head_dim)
        rotated = _rotate(turning, cos_sin, out.view(turning.shape))
        q_heads, k_heads = rotated.split_with_sizes(sizes, dim=1)
        query.copy_(q_heads)  # attention would make a contiguous copy of its own
        step.store(layer, k_heads, value)

    def silu_mul(self, gate_up: Tensor, buffers: Buffers) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate, inplace=True).mul_(up)


class FusedKernels(Protocol):
    """Functions as `kernels.reference_layer` has them."""

    def add_rms_norm(
        self,
        hidden: Tensor,
        added: Tensor | None,
        weight: Tensor,
        eps: float,
        *,
        out: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor: ...

    def rope_store(
        self,
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
    ) -> Tensor: ...

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> Tensor: ...


class FusedOperations:
    """One kernel each."""

    def __init__(self, name: str, kernels: FusedKernels) -> None:
        self.name = name
        self._kernels = kernels

    def add_norm(
        self,
        hidden: Tensor,
        added: Tensor | None,
        norm: Norm,
        buffers: Buffers,
        rows: Tensor | None = None,
    ) -> Tensor:
        width = hidden.shape[1]
        if rows is None:
            out = buffers.take("normed", hidden.shape[0], width)
        else:
            out = buffers.take("last", rows.shape[0], width)
        return self._kernels.add_rms_norm(hidden, added, norm.weight, norm.eps, out=out, rows=rows)

    def rope_store(
        self,
        layer: int,
        qkv: Tensor,
        cos_sin: Tensor,
        head_norms: HeadNorms | None,
        query: Tensor,
        step: AttentionStep,
        buffers: Buffers,
    ) -> None:
        norms = {} if head_norms is None else head_norms._asdict()
        self._kernels.rope_store(qkv, cos_sin, query, *step.target(layer), **norms)

    def silu_mul(self, gate_up: Tensor, buffers: Buffers) -> Tensor:
        out = buffers.take("activated", gate_up.shape[0], gate_up.shape[1] // 2)
        return self._kernels.silu_mul(gate_up, out)


def load(kernels: str, weight: Tensor) -> Operations:
    """The operations for the attention kernels of this name (see `kernels.backend`) and the dtype
    of the model's weights."""
    if kernels == "triton":
        from kernels import triton_layer

        return FusedOperations("triton", triton_layer)
    if kernels == "cpu" and weight.dtype == torch.float32:
        from kernels import cpu_layer

        return FusedOperations("cpu", cpu_layer)
    return TorchOperations()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def _rotate(x: Tensor, cos_sin: Tensor, out: Tensor) -> Tensor:
    """RoPE over halves. x, out: (T, H, D); cos_sin: (T, D)."""
    cos, sin = cos_sin[:, None, None].chunk(2, dim=-1)
    split = (*x.shape[:-1], 2, x.shape[-1] // 2)
    halves, turned = x.view(split), out.view(split)
    torch.mul(halves, cos, out=turned)
    turned[:, :, :1].addcmul_(halves[:, :, 1:], sin, value=-1)
    turned[:, :, 1:].addcmul_(halves[:, :, :1], sin)
    return out

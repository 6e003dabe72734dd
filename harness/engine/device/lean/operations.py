"""A layer's element-wise work: one interface, in torch's own operations or in Triton kernels."""

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
    """Torch's own: for CPUs, and what other implementations are checked against."""

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
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return _rms_norm(x, norm.weight, norm.eps)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
        out = buffers.take("normed" if rows is None else "last", *x.shape)
        return torch.mul(x, scale, out=out).mul_(norm.weight)

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


class TritonOperations:
    """One launch each."""

    name = "triton"

    def add_norm(
        self,
        hidden: Tensor,
        added: Tensor | None,
        norm: Norm,
        buffers: Buffers,
        rows: Tensor | None = None,
    ) -> Tensor:
        from kernels.triton_norm import add_rms_norm

        width = hidden.shape[1]
        if rows is None:
            out = buffers.take("normed", hidden.shape[0], width)
        else:
            out = buffers.take("last", rows.shape[0], width)
        normed: Tensor = add_rms_norm(hidden, added, norm.weight, norm.eps, out=out, rows=rows)
        return normed

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
        from kernels.triton_rope import rope_store

        norms = {} if head_norms is None else head_norms._asdict()
        rope_store(qkv, cos_sin, query, *step.target(layer), **norms)

    def silu_mul(self, gate_up: Tensor, buffers: Buffers) -> Tensor:
        from kernels.triton_activation import silu_mul

        product: Tensor = silu_mul(
            gate_up, buffers.take("activated", gate_up.shape[0], gate_up.shape[1] // 2)
        )
        return product


def load(kernels: str) -> Operations:
    """Those that go with the attention kernels of this name (see `kernels.backend`)."""
    return TritonOperations() if kernels == "triton" else TorchOperations()


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

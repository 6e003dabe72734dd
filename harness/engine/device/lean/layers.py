"""A decoder layer's weights, merged for fewer and larger matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.engine.device.attention import AttentionCall

_PACKED_FOR_ROWS = 64


@dataclass(frozen=True, slots=True)
class Linear:
    """weight_t: (in, out), a transposed view of the module's own weight. bias: (out,) or None.

    packed: the weight laid out for oneDNN, where it takes it. On a CPU without Intel's name
    torch's own matrix product (MKL) reaches well under half of oneDNN's speed.
    """

    weight_t: Tensor
    bias: Tensor | None
    packed: Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return self.weight_t.shape[1]

    def packed_product(self, x: Tensor) -> Tensor:
        """x @ weight_t + bias in a fresh tensor, by oneDNN; there must be a packed weight."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, "none", [], ""
        )
        return result

    def product(self, x: Tensor, out: Tensor) -> Tensor:
        """x @ weight_t + bias in `out`: one launch on a GPU."""
        if self.bias is None:
            return torch.mm(x, self.weight_t, out=out)
        return torch.addmm(self.bias, x, self.weight_t, out=out)


class Norm(NamedTuple):
    """RMSNorm's weight, (width,), and what is added to the mean square."""

    weight: Tensor
    eps: float


class HeadNorms(NamedTuple):
    """RMSNorm of each query and key head before RoPE; one eps for both."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """scale, window, softcap: as the model's own forward pass gives them to attention."""

    input_norm: Norm
    qkv: Linear
    head_norms: HeadNorms | None
    output: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear
    scale: float
    window: int | None
    softcap: float | None


def merge_layer(layer: Any, call: AttentionCall) -> Layer:
    """The weights of `layer`, a module for which `build.has_llama_parts` holds. Its projections
    are merged in place: the modules then hold views of the merged weights. call: what the
    module asked of attention in a probe."""
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        input_norm=norm(layer.input_layernorm),
        qkv=merge(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=_head_norms(attention),
        output=merge(attention.o_proj),
        mlp_norm=norm(layer.post_attention_layernorm),
        gate_up=merge(mlp.gate_proj, mlp.up_proj),
        down=merge(mlp.down_proj),
        scale=call.scale,
        window=call.window,
        softcap=call.softcap,
    )


def merge(*linears: nn.Linear) -> Linear:
    """One product for all of `linears`, outputs side by side."""
    if len(linears) == 1:
        (linear,) = linears
        return Linear(linear.weight.t(), linear.bias, _pack(linear.weight.data))
    sizes = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight.data for linear in linears])
    has_bias = any(linear.bias is not None for linear in linears)
    biases: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.data
        for linear in linears
    ]
    bias = torch.cat(biases) if has_bias else weight.new_zeros(len(weight))
    views = zip(weight.split_with_sizes(sizes), bias.split_with_sizes(sizes), strict=True)
    for linear, (weight_rows, bias_rows) in zip(linears, views, strict=True):
        linear.weight = nn.Parameter(weight_rows, requires_grad=False)
        if linear.bias is not None:
            linear.bias = nn.Parameter(bias_rows, requires_grad=False)
    return Linear(weight.t(), bias if has_bias else None, _pack(weight))


def norm(module: Any) -> Norm:
    """Of a module such as LlamaRMSNorm."""
    return Norm(module.weight, module.variance_epsilon)


def _head_norms(attention: Any) -> HeadNorms | None:
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    if q_norm is None or k_norm is None:
        return None
    return HeadNorms(q_norm.weight, k_norm.weight, q_norm.variance_epsilon)


def _pack(weight: Tensor) -> Tensor | None:
    """A second copy of `weight` in oneDNN's layout, or None where oneDNN is not the better way."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
    return packed

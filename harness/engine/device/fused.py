"""A leaner forward pass for decoders of Llama's build (Llama, Mistral, Qwen 2, Qwen 3, ...).

Merged QKV and gate-up projections, residuals added by the matrix product itself, cos and sin
once a step, logits for sampled rows only, and activations in buffers that are reused: large
fresh temporaries are slow. A model gets it where its modules have the right names and a probe
shows the same queries, keys, values and logits as its own forward pass; nothing else decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.engine.device.attention import AttentionCall, AttentionStep

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_PACKED_FOR_ROWS = 64
_PROBE_POSITIONS = (0, 3, 17, 200)


@dataclass(frozen=True, slots=True)
class _Linear:
    """weight_t: (in, out), a transposed view of the module's own weight. bias: (out,) or None.

    packed: the weight laid out for oneDNN, where it takes it. On a CPU without Intel's name
    torch's own matrix product (MKL) reaches well under half of oneDNN's speed.
    """

    weight_t: Tensor
    bias: Tensor | None
    packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x @ weight_t + bias, by oneDNN; there must be a packed weight."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, "none", [], ""
        )
        return result


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: _Norm
    qkv: _Linear
    q_norm: _Norm | None
    k_norm: _Norm | None
    output: _Linear
    mlp_norm: _Norm
    gate_up: _Linear
    down: _Linear
    scale: float
    window: int | None
    softcap: float | None


class FusedDecoder:
    """Calls like the model, on flat tensors. Not for two forwards at once: buffers are shared."""

    def __init__(self, model: Any, layers: list[_Layer], num_q_heads: int, head_dim: int) -> None:
        decoder = model.model
        self._embed: nn.Embedding = decoder.embed_tokens
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = decoder.rotary_emb
        self._final_norm = _norm(decoder.norm)
        self._head = _merge(model.lm_head)
        self._layers = layers
        self._num_q_heads = num_q_heads
        self._head_dim = head_dim
        self._buffers: dict[str, Tensor] = {}

    def with_own_buffers(self) -> FusedDecoder:
        """The same weights with buffers of their own, which hold what only this one computes."""
        other = copy.copy(self)
        other._buffers = {}
        return other

    def __call__(
        self, input_ids: Tensor, positions: Tensor, sample_rows: Tensor, step: AttentionStep
    ) -> Tensor:
        """Logits (sample rows, vocabulary), valid until the next call. All arguments are flat."""
        hidden = self._buffer(
            "hidden", len(input_ids), self._embed.embedding_dim, self._embed.weight
        )
        torch.index_select(self._embed.weight, 0, input_ids, out=hidden)
        cos, sin = self._rotary(hidden[None], position_ids=positions[None])
        half = self._head_dim // 2
        cos, sin = cos[0][:, None], sin[0][:, None, :half]
        for index, layer in enumerate(self._layers):
            self._attention(index, layer, hidden, cos, sin, step)
            self._mlp(layer, hidden)
        normed = self._rms_norm(hidden.index_select(0, sample_rows), self._final_norm)
        return self._project("logits", normed, self._head)

    def _attention(
        self,
        index: int,
        layer: _Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        step: AttentionStep,
    ) -> None:
        num_tokens = hidden.shape[0]
        normed = self._rms_norm(hidden, layer.input_norm)
        qkv = self._project("qkv", normed, layer.qkv).view(num_tokens, -1, self._head_dim)
        num_kv_heads = (qkv.shape[1] - self._num_q_heads) // 2
        rotated = qkv[:, : self._num_q_heads + num_kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            query, key = rotated.split_with_sizes((self._num_q_heads, num_kv_heads), dim=1)
            rotated = torch.cat(
                (_rms_norm(query, layer.q_norm), _rms_norm(key, layer.k_norm)), dim=1
            )
        out = self._buffer("rotated", num_tokens, rotated.shape[1] * self._head_dim, hidden)
        rotated = _rotate(rotated, cos, sin, out.view(rotated.shape))
        query, key = rotated.split_with_sizes((self._num_q_heads, num_kv_heads), dim=1)
        if query.device.type == "cpu":  # its kernels would make a contiguous copy of their own
            flat = self._buffer("query", num_tokens, query[0].numel(), hidden)
            query = flat.view(query.shape).copy_(query)
        attended = step.attend(
            index,
            query,
            key,
            qkv[:, self._num_q_heads + num_kv_heads :],
            scale=layer.scale,
            window=layer.window,
            softcap=layer.softcap,
            out=self._buffer("attended", num_tokens, query[0].numel(), hidden).view(query.shape),
        )
        _add_projected(hidden, attended.reshape(num_tokens, -1), layer.output)

    def _mlp(self, layer: _Layer, hidden: Tensor) -> None:
        normed = self._rms_norm(hidden, layer.mlp_norm)
        gate, up = self._project("gate_up", normed, layer.gate_up).chunk(2, dim=-1)
        _add_projected(hidden, functional.silu(gate, inplace=True).mul_(up), layer.down)

    def _rms_norm(self, x: Tensor, norm: _Norm) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return _rms_norm(x, norm)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
        out = self._buffer("normed", x.shape[0], x.shape[1], x)
        return torch.mul(x, scale, out=out).mul_(norm.weight)

    def _project(self, name: str, x: Tensor, linear: _Linear) -> Tensor:
        if linear.packed is not None:
            return linear(x)
        out = self._buffer(name, x.shape[0], linear.weight_t.shape[1], x)
        if linear.bias is None:
            return torch.mm(x, linear.weight_t, out=out)
        return torch.addmm(linear.bias, x, linear.weight_t, out=out)

    def _buffer(self, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < rows:
            buffer = like.new_empty((rows, columns))
            self._buffers[name] = buffer
        return buffer[:rows]


def fuse(model: Any) -> FusedDecoder | None:
    """The lean forward pass of `model`, or None where it is not of the right build.

    Merges projection weights in place: the model's own modules then hold views of them. On a
    CPU in fp32 the products read packed copies, so later changes to a weight are not seen.
    """
    if not _has_llama_parts(model):
        return None
    ids = torch.arange(len(_PROBE_POSITIONS), device=model.device) * 7 % model.config.vocab_size
    positions = torch.tensor(_PROBE_POSITIONS, device=model.device)
    with torch.no_grad():  # not inference mode: merged weights stay ordinary tensors
        own = AttentionStep.probe()
        expected = model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, kv_step=own
        ).logits[0]
        layers = [
            _merged(layer, call) for layer, call in zip(model.model.layers, own.calls, strict=True)
        ]
        _, num_q_heads, head_dim = own.calls[0].query.shape
        decoder = FusedDecoder(model, layers, num_q_heads, head_dim)
        lean = AttentionStep.probe()
        actual = decoder(ids, positions, torch.arange(len(ids), device=ids.device), lean)
    same = _close(actual, expected) and all(
        _close(getattr(ours, name), getattr(theirs, name))
        for ours, theirs in zip(lean.calls, own.calls, strict=True)
        for name in ("query", "key", "value")
    )
    return decoder if same else None


def _has_llama_parts(model: Any) -> bool:
    decoder = getattr(model, "model", None)
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    if decoder is None or not all(hasattr(decoder, part) for part in parts):
        return False
    if not isinstance(getattr(model, "lm_head", None), nn.Linear):
        return False
    return all(_is_llama_layer(layer) for layer in decoder.layers)


def _is_llama_layer(layer: nn.Module) -> bool:
    children = dict(layer.named_children())
    if set(children) != _LAYER_PARTS:
        return False
    attention = dict(children["self_attn"].named_children())
    mlp = dict(children["mlp"].named_children())
    if set(mlp) != _MLP_PARTS or not set(attention) <= _ATTENTION_PARTS:
        return False
    linears = [attention.get(name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears += [mlp[name] for name in ("gate_proj", "up_proj", "down_proj")]
    norms = [children["input_layernorm"], children["post_attention_layernorm"]]
    norms += [attention[name] for name in ("q_norm", "k_norm") if name in attention]
    return all(type(linear) is nn.Linear for linear in linears) and all(
        hasattr(norm, "variance_epsilon") for norm in norms
    )


def _merged(layer: Any, call: AttentionCall) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        input_norm=_norm(layer.input_layernorm),
        qkv=_merge(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=None if q_norm is None else _norm(q_norm),
        k_norm=None if k_norm is None else _norm(k_norm),
        output=_merge(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_merge(mlp.gate_proj, mlp.up_proj),
        down=_merge(mlp.down_proj),
        scale=call.scale,
        window=call.window,
        softcap=call.softcap,
    )


def _merge(*linears: nn.Linear) -> _Linear:
    if len(linears) == 1:
        (linear,) = linears
        return _Linear(linear.weight.t(), linear.bias, _pack(linear.weight.data))
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
    return _Linear(weight.t(), bias if has_bias else None, _pack(weight))


def _pack(weight: Tensor) -> Tensor | None:
    """A second copy of `weight` in oneDNN's layout, or None where oneDNN is not the better way."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
    return packed


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight, module.variance_epsilon)


def _rms_norm(x: Tensor, norm: _Norm) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """RoPE over halves: out = x * cos + rotate_half(x) * sin. sin: the first half only."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def _add_projected(hidden: Tensor, x: Tensor, linear: _Linear) -> None:
    if linear.packed is not None:
        hidden.add_(linear(x))
        return
    hidden.addmm_(x, linear.weight_t)
    if linear.bias is not None:
        hidden.add_(linear.bias)


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of a few reordered operations, relative to the largest value."""
    tolerance = 1e-4 if actual.dtype == torch.float32 else 5e-2
    error = (actual.float() - expected.float()).abs().max()
    return bool(error <= tolerance * expected.float().abs().max())

"""Decides which models get a lean forward pass, and proves that it computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.engine.device.attention import AttentionCall, AttentionStep
from harness.engine.device.lean import operations
from harness.engine.device.lean.angles import Angles
from harness.engine.device.lean.decoder import LeanDecoder, Weights
from harness.engine.device.lean.layers import merge, merge_layer, norm
from harness.engine.device.parallel.ranks import ALONE, Ranks

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_PROBE_POSITIONS = (0, 3, 17, 200)
"""And the last one: angles and scales of queries may change far out."""


class _Probed(NamedTuple):
    logits: Tensor
    calls: list[AttentionCall]


class LeanModel:
    """A model's lean forward pass, verified; each runner gets a decoder with buffers of its own."""

    def __init__(
        self,
        model: Any,
        weights: Weights,
        load: Callable[[str, Tensor], operations.Operations] = operations.load,
    ) -> None:
        self._model = model
        self._weights = weights
        self._load = load
        self._verified: dict[str, bool] = {}

    def decoder(self, kernels: str = "reference") -> LeanDecoder | None:
        """A decoder whose element-wise work goes with the attention kernels of this name; in
        torch's own operations, with a warning, where those kernels fail the probe, and None
        where nothing passes it."""
        wanted = self._load(kernels, self._weights.embedding)
        if not self._is_same(wanted):
            plain = self._load("reference", self._weights.embedding)
            if wanted.name == plain.name or not self._is_same(plain):
                return None
            warnings.warn(
                f"{type(self._model).__name__}: the fused {wanted.name} operations do not give "
                "the model's own queries, keys, values and logits: torch's take their place",
                RuntimeWarning,
                stacklevel=2,
            )
            wanted = plain
        return LeanDecoder(self._weights, wanted)

    def _is_same(self, wanted: operations.Operations) -> bool:
        if wanted.name not in self._verified:
            with torch.no_grad():
                own = _own_forward(self._model)
                lean = _lean_forward(LeanDecoder(self._weights, wanted), self._model)
            self._verified[wanted.name] = self._weights.ranks.agree(_is_same(lean, own))
        return self._verified[wanted.name]


def build(
    model: Any,
    load: Callable[[str, Tensor], operations.Operations] = operations.load,
    ranks: Ranks = ALONE,
) -> LeanModel | None:
    """The lean forward pass of `model`, or None where it is not of the right build. `model` may be
    split over `ranks`, which then all call this at once.

    Merges projection weights in place: the model's own modules then hold views of them. On a
    CPU in fp32 the products read packed copies, so later changes to a weight are not seen.
    load: gives the operations for a name of attention kernels.
    """
    if not has_llama_parts(model):
        return None
    decoder = model.model
    with torch.no_grad():  # not inference mode: merged weights stay ordinary tensors
        own = _own_forward(model)
        _, num_q_heads, head_dim = own.calls[0].query.shape
        weights = Weights(
            embedding=decoder.embed_tokens.weight,
            angles=Angles(decoder.rotary_emb, head_dim),
            layers=[
                merge_layer(layer, call)
                for layer, call in zip(decoder.layers, own.calls, strict=True)
            ],
            final_norm=norm(decoder.norm),
            head=merge(model.lm_head),
            num_q_heads=num_q_heads,
            head_dim=head_dim,
            vocab_size=model.config.get_text_config().vocab_size,
            ranks=ranks,
        )
    lean = LeanModel(model, weights, load)
    return None if lean.decoder() is None else lean


def has_llama_parts(model: Any) -> bool:
    """Whether the modules have the names and types that `Weights` are taken from."""
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


def _probe_tokens(model: Any) -> tuple[Tensor, Tensor]:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    positions = [*_PROBE_POSITIONS, max(longest - 1, *_PROBE_POSITIONS)]
    ids = torch.arange(len(positions), device=model.device) * 7 % model.config.vocab_size
    return ids, torch.tensor(positions, device=model.device)


def _own_forward(model: Any) -> _Probed:
    ids, positions = _probe_tokens(model)
    step = AttentionStep.probe()
    arguments = {"input_ids": ids[None], "position_ids": positions[None], "kv_step": step}
    return _Probed(model(**arguments, use_cache=False).logits[0], step.calls)


def _lean_forward(decoder: LeanDecoder, model: Any) -> _Probed:
    ids, positions = _probe_tokens(model)
    rows = torch.arange(len(ids), device=ids.device)
    step = AttentionStep.probe(decoder.probe_caches(len(ids)), rows)
    return _Probed(decoder(ids, positions, rows, step), step.calls)


def _is_same(actual: _Probed, expected: _Probed) -> bool:
    return _close(actual.logits, expected.logits) and all(
        _close(getattr(ours, name), getattr(theirs, name))
        for ours, theirs in zip(actual.calls, expected.calls, strict=True)
        for name in ("query", "key", "value")
    )


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of a few reordered operations, relative to the largest value."""
    tolerance = 1e-4 if actual.dtype == torch.float32 else 5e-2
    error = (actual.float() - expected.float()).abs().max()
    return bool(error <= tolerance * expected.float().abs().max())

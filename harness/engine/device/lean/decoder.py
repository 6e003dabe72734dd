"""The lean forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.device.attention import AttentionStep
from harness.engine.device.lean.angles import Angles
from harness.engine.device.lean.buffers import Buffers
from harness.engine.device.lean.layers import Layer, Linear, Norm
from harness.engine.device.lean.operations import Operations
from harness.engine.device.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Weights:
    """What a lean forward pass computes with. embedding: (vocabulary, width).

    Of a model that is split over `ranks`, all but the norms are this rank's slices, and num_q_heads
    are those it has.
    """

    embedding: Tensor
    angles: Angles
    layers: Sequence[Layer]
    final_norm: Norm
    head: Linear
    num_q_heads: int
    head_dim: int
    vocab_size: int
    ranks: Ranks

    @property
    def num_kv_heads(self) -> int:
        return (self.layers[0].qkv.num_outputs // self.head_dim - self.num_q_heads) // 2


class LeanDecoder:
    """Calls like the model, on flat tensors. Not for two forwards at once: buffers are shared.

    On a GPU with Triton operations a layer takes 8 launches beside attention, and a step six more
    (eight where cosines and sines are scaled); nothing waits for the device and nothing is
    allocated after `reserve`, but for what ranks exchange.
    """

    def __init__(self, weights: Weights, operations: Operations) -> None:
        self._weights = weights
        self.operations = operations
        self.buffers = Buffers(weights.embedding.dtype, weights.embedding.device)

    def __call__(
        self, input_ids: Tensor, positions: Tensor, sample_rows: Tensor, step: AttentionStep
    ) -> Tensor:
        """Logits (sample rows, vocabulary), valid until the next call. All arguments are flat."""
        own, operations, buffers = self._weights, self.operations, self.buffers
        num_tokens, width = len(input_ids), own.embedding.shape[1]
        hidden = buffers.take("hidden", num_tokens, width)
        own.ranks.embed(own.embedding, input_ids, hidden)
        cos_sin = own.angles.cos_sin(positions, hidden, buffers)
        added: Tensor | None = None
        for index, layer in enumerate(own.layers):
            normed = operations.add_norm(hidden, added, layer.input_norm, buffers)
            added = self._attention(index, layer, normed, cos_sin, step)
            normed = operations.add_norm(hidden, added, layer.mlp_norm, buffers)
            gate_up = self._project("gate_up", normed, layer.gate_up)
            product = self._project("added", operations.silu_mul(gate_up, buffers), layer.down)
            added = own.ranks.sum(product)
        last = operations.add_norm(hidden, added, own.final_norm, buffers, sample_rows)
        return own.ranks.join_vocabulary(self._project("logits", last, own.head), own.vocab_size)

    def reserve(self, max_tokens: int, max_samples: int) -> None:
        """Take all buffers for the largest step now: a later call of at most so many tokens and
        sampled rows moves none of them. Computes one token, so that kernels are compiled."""
        self.buffers.reserve(max_tokens, max_samples)
        own = self._weights
        one = torch.zeros(1, dtype=torch.long, device=own.embedding.device)
        self(one, one, one, AttentionStep.probe(self.probe_caches(1), one))

    def with_own_buffers(self) -> LeanDecoder:
        """The same weights and operations, for a caller whose activations must stay apart."""
        return LeanDecoder(self._weights, self.operations)

    def probe_caches(self, num_tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Caches of as many slots for each layer, for `AttentionStep.probe`."""
        own = self._weights
        size = (num_tokens, own.num_kv_heads, own.head_dim)
        new = own.embedding.new_empty
        return [(new(size), new(size)) for _ in own.layers]

    def _attention(
        self, index: int, layer: Layer, normed: Tensor, cos_sin: Tensor, step: AttentionStep
    ) -> Tensor:
        own, buffers = self._weights, self.buffers
        num_tokens = normed.shape[0]
        qkv = self._project("qkv", normed, layer.qkv)
        heads = (num_tokens, own.num_q_heads, own.head_dim)
        flat = (num_tokens, own.num_q_heads * own.head_dim)
        query = buffers.take("query", *flat).view(heads)
        self.operations.rope_store(index, qkv, cos_sin, layer.head_norms, query, step, buffers)
        attended = step.read(
            index,
            query,
            scale=layer.scale,
            window=layer.window,
            softcap=layer.softcap,
            out=buffers.take("attended", *flat).view(heads),
        )
        return own.ranks.sum(self._project("added", attended.reshape(flat), layer.output))

    def _project(self, name: str, x: Tensor, linear: Linear) -> Tensor:
        if linear.packed is not None:
            return linear.packed_product(x)
        return linear.product(x, self.buffers.take(name, x.shape[0], linear.num_outputs))

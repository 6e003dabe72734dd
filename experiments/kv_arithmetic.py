"""KV memory by formula: of a token, of a request, and how many requests fit under a strategy.

A request of p prompt and o output tokens computes p + o - 1 positions, one output token a step;
while it makes its k-th, it holds p + k - 1 of them. Means over running requests weigh each by its
output, for so many steps it runs. What these formulas leave out is what a run has besides: free
pages that are too few for the next request, holes between reservations, prefill, the watermark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.line_panels import published
from harness.workloads.lengths import sharegpt_table
from harness.workloads.streams import Floats, Ints

Strategy = Literal["max", "oracle", "paged"]
STRATEGIES: tuple[Strategy, ...] = ("max", "oracle", "paged")

VALUE_BYTES = 2
"""KV in 16 bits."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """A decoder's KV. layer_values: values of a token in one layer, keys and values together.
    window: tokens that `windowed_layers` of the layers keep; the others keep all. context: longest
    sequence."""

    name: str
    layers: int
    layer_values: int
    context: int
    weight_bytes: float
    window: int | None = None
    windowed_layers: int = 0

    @classmethod
    def of(cls, name: str, figures: Mapping[str, Any]) -> KVShape:
        """As in experiments/published/model_shapes.yaml."""
        values = figures.get("latent") or 2 * figures["kv_heads"] * figures["head_dim"]
        return cls(
            name,
            figures["layers"],
            values,
            figures["context"],
            figures["parameters"] * 1e9 * figures.get("weight_bytes", 2),
            figures.get("window"),
            figures.get("windowed_layers", 0),
        )

    @property
    def token_bytes(self) -> int:
        """One token in all layers."""
        return self.layers * self.layer_values * VALUE_BYTES

    def request_bytes(self, num_tokens: float) -> float:
        """So many tokens of one sequence, less what windows have left behind."""
        kept = num_tokens if self.window is None else min(num_tokens, self.window)
        slots = (self.layers - self.windowed_layers) * num_tokens + self.windowed_layers * kept
        return slots * self.layer_values * VALUE_BYTES


def common_models() -> tuple[KVShape, ...]:
    """Those of experiments/published/model_shapes.yaml."""
    return tuple(KVShape.of(name, figures) for name, figures in published("model_shapes").items())


@dataclass(frozen=True, slots=True)
class Lengths:
    """A joint distribution of prompt and output lengths: `weights` of as many pairs."""

    prompts: Ints
    outputs: Ints
    weights: Floats

    @classmethod
    def sharegpt(cls, scale: float = 1.0) -> Lengths:
        """The shipped table, with every length multiplied and rounded to at least 1."""
        table = sharegpt_table()
        prompts, outputs = (
            np.maximum(np.rint(scale * table[:, column]), 1).astype(np.int64) for column in (1, 2)
        )
        return cls(prompts, outputs, table[:, 0] / table[:, 0].sum())

    @property
    def mean_total(self) -> float:
        """Mean prompt and output together."""
        return float(self.weights @ (self.prompts + self.outputs))

    @property
    def resident_tokens(self) -> float:
        """Mean tokens that a running request holds."""
        p, o = self.prompts, self.outputs
        return self._mean_a_step(o * p + o * (o - 1) / 2)

    def held_tokens(self, strategy: Strategy, limit: int, page_size: int) -> float:
        """Mean slots that a running request has, in whole pages: for its bound (`max`: prompt and
        output are at most `limit` together), for its true length (`oracle`), for what it holds."""
        p, o = self.prompts, self.outputs
        if strategy == "max":
            return float(-(-(limit - 1) // page_size) * page_size)
        if strategy == "oracle":
            pages = -(-(p + o - 1) // page_size)
            return page_size * self._mean_a_step(o * pages)
        pages_up_to = np.cumsum(-(-np.arange(int((p + o).max())) // page_size))
        return page_size * self._mean_a_step(pages_up_to[p + o - 1] - pages_up_to[p - 1])

    def users(self, strategy: Strategy, limit: int, page_size: int, pool_tokens: float) -> float:
        """Requests that run at once in a pool; whole ones where all are given the same."""
        count = pool_tokens / self.held_tokens(strategy, limit, page_size)
        return float(int(count)) if strategy == "max" else count

    def waste(self, strategy: Strategy, limit: int, page_size: int) -> float:
        """Share of what running requests have that holds no token."""
        return 1 - self.resident_tokens / self.held_tokens(strategy, limit, page_size)

    def _mean_a_step(self, sums: Floats | Ints) -> float:
        return float((self.weights @ sums) / (self.weights @ self.outputs))


def gpus_needed(model: KVShape, gpu_bytes: float, memory_fraction: float) -> int:
    """The least power of two GPUs that hold the weights and one request of the whole context."""
    needed = model.weight_bytes + model.request_bytes(model.context)
    count = 1
    while count * gpu_bytes * memory_fraction < needed:
        count *= 2
    return count


def model_users(
    model: KVShape, lengths: Lengths, strategy: Strategy, limit: int, kv_bytes: float
) -> float:
    """Requests that fit in `kv_bytes`, pages of 16 tokens, if every strategy gives back (or never
    takes) what lies outside of windows. Exact for lengths below every window, else a lower bound:
    the window is applied to the mean length."""
    held = model.request_bytes(lengths.held_tokens(strategy, limit, 16))
    return float(int(kv_bytes / held)) if strategy == "max" else kv_bytes / held

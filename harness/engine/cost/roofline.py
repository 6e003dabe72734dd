"""A step's time from the bytes it moves and the operations it does (Williams et al., "Roofline",
CACM 2009; for the operations of a decoder, Pope et al., MLSys 2023, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.engine.cost.gpu import Gpu
from harness.engine.device.model_shape import LayerGroup, ModelShape
from harness.engine.plan import Chunk, StepPlan

GEMM_TILE_ROWS = 64
"""A matrix product is done in tiles of so many rows, filled or not."""


class Host(NamedTuple):
    """Time that nobody published: an axis to look along, not a figure to believe in.

    step_s: a step, whatever is in it. sequence_s: each sequence of a step. transfer_s: each page
    that goes to the host or comes back, beside its bytes.
    """

    step_s: float = 0.0
    sequence_s: float = 0.0
    transfer_s: float = 0.0


class Work(NamedTuple):
    """Bytes moved and floating-point operations done by one operation of all layers."""

    num_bytes: float
    flop: float


class Roofline:
    """The sum over a step's operations of max(bytes / bandwidth, FLOP / peak), and the host.

    Operations are the linear layers, attention, and the output layer: a kernel of one cannot
    hide behind another's. Norms, activations and sampling move no bytes worth counting beside
    these. Attention reads whole pages. groups: the layers that have pages of their own.
    """

    def __init__(
        self,
        gpu: Gpu,
        shape: ModelShape,
        page_size: int,
        groups: Sequence[LayerGroup],
        host: Host = Host(),  # noqa: B008
    ) -> None:
        self._gpu = gpu
        self._shape = shape
        self._page_size = page_size
        self._groups = groups
        self._host = host
        self._output_weights = shape.vocab_size * shape.hidden_size
        kv_bytes = shape.kv_bytes_per_token / shape.num_layers
        self._page_bytes = page_size * kv_bytes * len(groups[0].layers)
        self._token_bytes = shape.kv_bytes_per_token

    def step_s(self, plan: StepPlan) -> float:
        gpu, host, page_bytes = self._gpu, self._host, self._page_bytes
        num_tokens = sum(len(chunk.token_ids) for chunk in plan.chunks)
        seconds = host.step_s + host.sequence_s * len(plan.chunks)
        if num_tokens:
            for work in (
                self._linear(num_tokens, self._shape.num_layer_parameters),
                self._attention(plan.chunks, num_tokens),
                self._linear(sum(map(_num_logits, plan.chunks)), self._output_weights),
            ):
                seconds += max(work.num_bytes / gpu.bytes_per_s, work.flop / gpu.flops)
        seconds += len(plan.copies) * 2 * page_bytes / gpu.bytes_per_s
        num_transfers = len(plan.saves) + len(plan.restores)
        return seconds + num_transfers * (host.transfer_s + page_bytes / gpu.pcie_bytes_per_s)

    def _linear(self, num_rows: int, num_weights: int) -> Work:
        if not num_rows:
            return Work(0.0, 0.0)
        rows = -(-num_rows // GEMM_TILE_ROWS) * GEMM_TILE_ROWS
        return Work(num_weights * self._shape.dtype_bytes, 2.0 * num_weights * rows)

    def _attention(self, chunks: Sequence[Chunk], num_tokens: int) -> Work:
        """Each chunk reads the pages of its context once; keys and values of its own tokens are
        written."""
        size = self._page_size
        num_pages, num_pairs = 0, 0
        for window, layers in self._groups:
            for chunk in chunks:
                count = len(chunk.token_ids)
                end = chunk.start + count
                first = 0 if window is None else max(0, chunk.start - window + 1)
                num_pages += (end - 1) // size - first // size + 1
                num_pairs += _num_pairs(chunk.start, count, window) * len(layers)
        shape = self._shape
        flop = 4.0 * shape.num_q_heads * shape.head_dim * num_pairs
        return Work(num_pages * self._page_bytes + num_tokens * self._token_bytes, flop)


def _num_pairs(start: int, count: int, window: int | None) -> int:
    """Queries times the keys that each reads."""
    if window is None or start + count <= window:
        return count * start + count * (count + 1) // 2
    growing = max(0, window - start)  # queries before which there is less than a window
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * window


def _num_logits(chunk: Chunk) -> int:
    """Positions whose logits are wanted."""
    if chunk.num_drafts:
        return chunk.num_drafts + 1
    return 1 if chunk.draws or chunk.num_candidates else 0

"""Activations that stay where they are from one forward pass to the next."""

from __future__ import annotations

import torch
from torch import Tensor

OF_SAMPLED_ROWS = frozenset({"last", "logits"})
"""Buffers with a row for each sampled token; the others have one for each token."""


class Buffers:
    """Tensors by name; large fresh temporaries are slow, and a captured graph needs addresses
    that stay. A buffer moves only when more rows are asked for than ever before."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._least_tokens = self._least_samples = 0

    def reserve(self, max_tokens: int, max_samples: int) -> None:
        """From now on a buffer is taken for so many rows, those of sampled rows for so many."""
        self._least_tokens = max(max_tokens, self._least_tokens)
        self._least_samples = max(max_samples, self._least_samples)

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """The first `rows` rows of the buffer `name`, (rows, columns); what they hold is of
        whoever took them last. dtype: the model's own by default."""
        least = self._least_samples if name in OF_SAMPLED_ROWS else self._least_tokens
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < max(rows, least):
            size = (max(rows, least), columns)
            buffer = torch.empty(size, dtype=dtype or self._dtype, device=self._device)
            self._buffers[name] = buffer
        return buffer[:rows]

    @property
    def num_bytes(self) -> int:
        """What the buffers take."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def addresses(self) -> dict[str, int]:
        """Where each buffer lies."""
        return {name: buffer.data_ptr() for name, buffer in self._buffers.items()}

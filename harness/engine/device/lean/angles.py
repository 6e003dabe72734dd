"""Cosines and sines of rotary position embeddings, once a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.engine.device.lean.buffers import Buffers

_CHANGING_TYPES = ("dynamic", "longrope")
"""Their frequencies depend on the longest sequence of the batch."""


class Angles:
    """What a model's rotary module gives, without its temporaries where its frequencies are
    fixed; a module of another kind is called as it is."""

    def __init__(self, rotary: Any, head_dim: int) -> None:
        self._rotary = rotary
        self._half = head_dim // 2
        frequencies = getattr(rotary, "inv_freq", None)
        is_fixed = getattr(rotary, "rope_type", "default") not in _CHANGING_TYPES
        self._frequencies: Tensor | None = None
        if is_fixed and isinstance(frequencies, Tensor) and frequencies.shape == (self._half,):
            self._frequencies = frequencies.float()
        self._scaling = float(getattr(rotary, "attention_scaling", 1.0))

    def cos_sin(self, positions: Tensor, like: Tensor, buffers: Buffers) -> Tensor:
        """(T, head_dim) in the type of `like`: cosines of half a head, then sines."""
        num_tokens = len(positions)
        out = buffers.take("cos_sin", num_tokens, 2 * self._half)
        parts = out.chunk(2, dim=-1)
        if self._frequencies is None:
            for part, full in zip(
                parts, self._rotary(like[None], position_ids=positions[None]), strict=True
            ):
                part.copy_(full[0, :, : self._half])
            return out
        angles = buffers.take("angles", num_tokens, self._half, torch.float32)
        torch.mul(positions[:, None], self._frequencies, out=angles)
        for part, function in zip(parts, (torch.cos, torch.sin), strict=True):
            if self._scaling == 1.0:
                function(angles, out=part)
                continue
            scaled = buffers.take("scaled", num_tokens, self._half, torch.float32)
            function(angles, out=scaled)
            torch.mul(scaled, self._scaling, out=part)
        return out

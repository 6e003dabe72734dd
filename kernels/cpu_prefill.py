"""Attention of prefill chunks on the CPU: blocks of queries against views of the KV, by GEMM."""

from __future__ import annotations

import torch
from torch import Tensor

_LOGITS_PER_BLOCK = 1 << 20
"""Logits held at a time (4 MiB): what a block of queries writes is still in cache when read."""


class Workspace:
    """A buffer that grows to the largest size asked for: fresh large temporaries are slow."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, *shape: int) -> Tensor:
        """Uninitialised float32 tensor, valid until the next call."""
        size = 1
        for length in shape:
            size *= length
        if self._buffer.numel() < size:
            with torch.inference_mode(False):  # or nobody could write to it outside of that mode
                self._buffer = torch.empty(size)
        return self._buffer[:size].view(shape)


def chunk_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor,
    workspace: Workspace,
) -> None:
    """Causal attention of the last tokens of one sequence; all tensors float32.

    query, out: (num_tokens, num_q_heads, head_dim). keys, values: (context, num_kv_heads,
    head_dim), which may be strided views. Key heads are never expanded: the queries of a group
    are rows of one GEMM.
    """
    num_tokens, num_heads, dim = query.shape
    context, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads
    keys_t = keys.permute(1, 2, 0)
    values_h = values.permute(1, 0, 2)
    block = max(16, min(num_tokens, _LOGITS_PER_BLOCK // (num_heads * context)))
    for first in range(0, num_tokens, block):
        last = min(first + block, num_tokens)
        n = last - first
        stop = context - num_tokens + last
        start = 0 if window is None else max(0, stop - n - window + 1)
        q = query[first:last].view(n, num_kv_heads, group, dim).permute(1, 2, 0, 3)
        q = q.reshape(num_kv_heads, group * n, dim)
        logits = workspace.take(num_kv_heads, group * n, stop - start)
        torch.baddbmm(logits, q, keys_t[:, :, start:stop], beta=0, alpha=scale, out=logits)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        _mask(logits.view(num_heads, n, stop - start), stop - n, start, window)
        torch.softmax(logits, dim=-1, out=logits)
        result = torch.bmm(logits, values_h[:, start:stop])
        result = result.view(num_kv_heads, group, n, dim).permute(2, 0, 1, 3)
        out[first:last].view(n, num_kv_heads, group, dim).copy_(result)


def _mask(logits: Tensor, q_start: int, k_start: int, window: int | None) -> None:
    """Set logits (heads, n, keys) of invisible keys to -inf, touching only the two corners.

    Queries lie at the positions from q_start on, keys at those from k_start on.
    """
    n = logits.shape[1]
    tail = logits[:, :, q_start - k_start :]
    tail.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu_(1), -torch.inf)
    if window is not None:
        positions = torch.arange(q_start, q_start + n)[:, None]
        hidden_until = q_start + n - window
        head = logits[:, :, : max(0, hidden_until - k_start)]
        keys = torch.arange(k_start, k_start + head.shape[2])
        head.masked_fill_(keys[None, :] <= positions - window, -torch.inf)

"""A decoder layer's element-wise work in plain torch: the truth that fused kernels are held to.

Arithmetic is float32 whatever the tensors' type; what is stored is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.reference import store_kv


def add_rms_norm(
    hidden: Tensor,
    added: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """hidden += added, then out = RMSNorm(hidden) * weight (Zhang and Sennrich, 2019, section 4).

    hidden, added: (num_tokens, width); added may be None. The sum is rounded to `hidden`'s type
    before it is normalised, as the residual of the next layer is.
    rows: int64 (num_rows); only these rows are added and normalised, into the rows of `out` in
        turn, and `hidden` is left as it was.
    Returns `out`, (num_tokens or num_rows, width).
    """
    chosen = hidden if rows is None else hidden[rows]
    if added is not None:
        chosen = (chosen.float() + (added if rows is None else added[rows]).float()).to(
            hidden.dtype
        )
        if rows is None:
            hidden.copy_(chosen)
    out.copy_(rms_norm(chosen.float(), weight, eps))
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in `x`'s type."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)


def rope_store(
    qkv: Tensor,
    cos_sin: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Rotate queries and keys (RoPE over halves; Su et al., 2021, section 3.4.2), write the keys
    and values to their slots.

    qkv: (num_tokens, (num_q_heads + 2 num_kv_heads) * head_dim), as a merged projection leaves
        it: queries, then keys, then values.
    cos_sin: (num_tokens, head_dim), each token's cosines of half a head, then its sines.
    query: (num_tokens, num_q_heads, head_dim), written and returned.
    key_cache, value_cache, slot_mapping: as of `reference.store_kv`; a token at slot -1 is not
        stored, its queries are rotated all the same.
    q_weight, k_weight: (head_dim); both given, each head of queries and keys is first normalised
        by `rms_norm` with `eps` (as Qwen 3 does) and rounded to `qkv`'s type.
    """
    num_tokens, num_q_heads, head_dim = query.shape
    heads = qkv.view(num_tokens, -1, head_dim)
    num_kv_heads = key_cache.shape[1]
    queries, keys, values = heads.split_with_sizes((num_q_heads, num_kv_heads, num_kv_heads), dim=1)
    if q_weight is not None and k_weight is not None:
        queries = rms_norm(queries.float(), q_weight, eps).to(qkv.dtype)
        keys = rms_norm(keys.float(), k_weight, eps).to(qkv.dtype)
    query.copy_(rotate(queries.float(), cos_sin.float()))
    rotated = rotate(keys.float(), cos_sin.float()).to(qkv.dtype)
    store_kv(rotated, values, key_cache, value_cache, slot_mapping)
    return query


def rotate(heads: Tensor, cos_sin: Tensor) -> Tensor:
    """heads (num_tokens, heads, head_dim), cos_sin (num_tokens, head_dim) of the same type."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    left, right = heads.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def silu_mul(gate_up: Tensor, out: Tensor) -> Tensor:
    """out = silu(gate) * up (SwiGLU; Shazeer, 2020) of a merged projection's output.

    gate_up: (num_tokens, 2 * width), gates first. Returns `out`, (num_tokens, width).
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    out.copy_(gate * torch.sigmoid(gate) * up)
    return out

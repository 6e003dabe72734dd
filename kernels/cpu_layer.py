"""A decoder layer's element-wise work on the CPU in float32, compiled by numba: one parallel region
each, where torch's own operations take several, with threads that wait for one another after each.

Same promises as `kernels.reference_layer`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import store_kv
from kernels.cpu_compiled import LOG2_E, U, exp2, jit, num_threads, on_threads

_LEAST_VALUES = 32768
"""Below this, one thread finishes before the others wake up."""

_NO_VALUES = np.empty((0, 0), np.float32)
_NO_ROWS = np.empty(0, np.int64)
_NO_WEIGHT = np.empty(0, np.float32)


def _threads(num_values: int) -> int:
    """One thread or all of them: OpenMP ends the threads that a region does not use, and starts new
    ones for the next region."""
    return 1 if num_values < _LEAST_VALUES else num_threads()


@jit
def _norm_rows(thread, threads, hidden, added, weight, eps, rows, out):  # type: ignore[no-untyped-def]
    n, width = out.shape
    for i in range(n * thread // threads, n * (thread + 1) // threads):
        row = rows[i] if rows.size else i
        x, y = hidden[row], out[i]
        if not added.size:
            y[:] = x
        else:
            more = added[row]
            for j in range(U(width)):
                y[j] = x[j] + more[j]
            if not rows.size:
                x[:] = y
        total = np.float32(0)
        for j in range(U(width)):
            total += y[j] * y[j]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
        for j in range(U(width)):
            y[j] = y[j] * scale * weight[j]


_norm_on_threads = on_threads(_norm_rows)


@jit
def _norm(threads, hidden, added, weight, eps, rows, out):  # type: ignore[no-untyped-def]
    _norm_on_threads(threads, (hidden, added, weight, np.float32(eps), rows, out))


def add_rms_norm(
    hidden: Tensor,
    added: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """See `reference_layer.add_rms_norm`."""
    _norm(
        _threads(out.numel()),
        hidden.numpy(),
        _NO_VALUES if added is None else added.numpy(),
        weight.detach().numpy(),
        eps,
        _NO_ROWS if rows is None else rows.numpy(),
        out.numpy(),
    )
    return out


@jit
def _turn(source, weight, eps, cos_sin, destination):  # type: ignore[no-untyped-def]
    half = U(source.shape[0] // 2)
    if weight.size:
        total = np.float32(0)
        for i in range(U(source.shape[0])):
            total += source[i] * source[i]
        scale = np.float32(1) / np.sqrt(total / np.float32(source.shape[0]) + eps)
        for i in range(U(source.shape[0])):
            destination[i] = source[i] * scale * weight[i]
        source = destination
    for i in range(half):
        left, right = source[i], source[half + i]
        cos, sin = cos_sin[i], cos_sin[half + i]
        destination[i] = left * cos - right * sin
        destination[half + i] = right * cos + left * sin


@jit
def _rope_rows(  # type: ignore[no-untyped-def]
    thread, threads, heads, cos_sin, query, keys, values, slots, q_weight, k_weight, eps
):
    n, num_q, num_kv = query.shape[0], query.shape[1], keys.shape[1]
    for i in range(n * thread // threads, n * (thread + 1) // threads):
        for head in range(num_q):
            _turn(heads[i, head], q_weight, eps, cos_sin[i], query[i, head])
        slot = slots[i]
        if slot >= 0:
            for head in range(num_kv):
                _turn(heads[i, num_q + head], k_weight, eps, cos_sin[i], keys[slot, head])
                values[slot, head] = heads[i, num_q + num_kv + head]


_rope_on_threads = on_threads(_rope_rows)


@jit
def _rope(  # type: ignore[no-untyped-def]
    threads, heads, cos_sin, query, keys, values, slots, q_weight, k_weight, eps
):
    if slots.size != heads.shape[0] or (slots.size and slots.max() >= keys.shape[0]):
        raise IndexError("not a slot of the cache for each token")
    eps = np.float32(eps)
    arguments = (heads, cos_sin, query, keys, values, slots, q_weight, k_weight, eps)
    _rope_on_threads(threads, arguments)


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
    """See `reference_layer.rope_store`."""
    is_narrow = key_cache.dtype != torch.float32
    keys, values, slots = key_cache, value_cache, slot_mapping
    if is_narrow:
        keys, values = (torch.empty(len(qkv), *cache.shape[1:]) for cache in (keys, values))
        slots = torch.arange(len(qkv))
    _rope(
        _threads(qkv.numel()),
        qkv.view(len(qkv), -1, query.shape[2]).numpy(),
        cos_sin.numpy(),
        query.numpy(),
        keys.numpy(),
        values.numpy(),
        slots.numpy(),
        _NO_WEIGHT if q_weight is None else q_weight.detach().numpy(),
        _NO_WEIGHT if k_weight is None else k_weight.detach().numpy(),
        eps,
    )
    if is_narrow:
        store_kv(keys, values, key_cache, value_cache, slot_mapping)
    return query


@jit
def _silu_rows(thread, threads, gate_up, out):  # type: ignore[no-untyped-def]
    n, width = out.shape
    for i in range(n * thread // threads, n * (thread + 1) // threads):
        gate, up, product = gate_up[i, :width], gate_up[i, width:], out[i]
        for j in range(U(width)):
            x = gate[j]
            e = exp2(-abs(x) * LOG2_E)
            product[j] = x * up[j] * (np.float32(1) if x >= 0 else e) / (np.float32(1) + e)


_silu_on_threads = on_threads(_silu_rows)


@jit
def _silu(threads, gate_up, out):  # type: ignore[no-untyped-def]
    _silu_on_threads(threads, (gate_up, out))


def silu_mul(gate_up: Tensor, out: Tensor) -> Tensor:
    """See `reference_layer.silu_mul`."""
    _silu(_threads(out.numel()), gate_up.numpy(), out.numpy())
    return out

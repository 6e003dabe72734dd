"""A layer's element-wise kernels at the widths of Llama 3.1 8B, beside what copying takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.decode_cases import Shape
from benchmarks.other_kernels import Bench, Prepared, num_sets, run_cases
from kernels.cost import add_rms_norm_cost, rope_store_cost, silu_mul_cost


class Sizes(NamedTuple):
    """tokens: of a step. hidden, intermediate: widths."""

    tokens: Sequence[int]
    hidden: int
    intermediate: int


GPU = Sizes((64, 256, 4096), 4096, 14336)
DRY = Sizes((3,), 64, 128)


def run(bench: Bench, shape: Shape, sizes: Sizes, l2_bytes: int) -> None:
    """Every kernel and number of tokens."""
    run_cases(bench, cases(bench.device, shape, sizes, l2_bytes))


def cases(
    device: torch.device, shape: Shape, sizes: Sizes, l2_bytes: int
) -> Iterator[tuple[str, str, Callable[[], Prepared]]]:
    """Name, group and preparation of each case."""
    for tokens in sizes.tokens:
        where = (device, shape, tokens)
        for name, make in (
            ("add_rms_norm", partial(norm, *where, sizes.hidden, l2_bytes)),
            ("rope_store", partial(rope, *where, l2_bytes)),
            ("silu_mul", partial(silu, *where, sizes.intermediate, l2_bytes)),
        ):
            yield f"{name}, {tokens} tokens", "layer", make


def norm(device: torch.device, shape: Shape, tokens: int, width: int, l2_bytes: int) -> Prepared:
    """Residual and RMSNorm."""
    from kernels.triton_norm import add_rms_norm

    cost = add_rms_norm_cost(tokens, width, element_bytes=shape.dtype.itemsize)
    weight = torch.ones(width, device=device, dtype=shape.dtype)
    size = (num_sets(cost.moved_bytes, l2_bytes), tokens, width)
    hidden, added, out = (_random(size, device, shape.dtype) for _ in range(3))
    calls = [
        partial(add_rms_norm, h, a, weight, 1e-5, out=o)
        for h, a, o in zip(hidden, added, out, strict=True)
    ]
    return Prepared(calls, cost, {"tokens": tokens, "sets": len(calls)})


def rope(device: torch.device, shape: Shape, tokens: int, l2_bytes: int) -> Prepared:
    """RoPE of queries and keys, and the store of keys and values."""
    from kernels.triton_rope import rope_store

    cost = rope_store_cost(
        tokens, num_q_heads=shape.q_heads, num_kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        element_bytes=shape.dtype.itemsize,
    )  # fmt: skip
    sets = num_sets(cost.moved_bytes, l2_bytes)
    width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
    qkv = _random((sets, tokens, width), device, shape.dtype)
    cos_sin = _random((tokens, shape.head_dim), device, shape.dtype)
    query = _random((sets, tokens, shape.q_heads, shape.head_dim), device, shape.dtype)
    slots = sets * tokens
    caches = [_random((slots, shape.kv_heads, shape.head_dim), device, shape.dtype) for _ in "kv"]
    places = torch.randperm(slots, device=device).view(sets, tokens)
    calls = [
        partial(rope_store, source, cos_sin, out, *caches, place)
        for source, out, place in zip(qkv, query, places, strict=True)
    ]
    return Prepared(calls, cost, {"tokens": tokens, "sets": sets})


def silu(device: torch.device, shape: Shape, tokens: int, width: int, l2_bytes: int) -> Prepared:
    """The gated activation."""
    from kernels.triton_activation import silu_mul

    cost = silu_mul_cost(tokens, width, element_bytes=shape.dtype.itemsize)
    sets = num_sets(cost.moved_bytes, l2_bytes)
    gate_up = _random((sets, tokens, 2 * width), device, shape.dtype)
    out = _random((sets, tokens, width), device, shape.dtype)
    calls = [partial(silu_mul, g, o) for g, o in zip(gate_up, out, strict=True)]
    return Prepared(calls, cost, {"tokens": tokens, "sets": sets})


def _random(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, device=device, dtype=dtype).normal_()

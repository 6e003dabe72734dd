"""A layer's element-wise kernels against the reference over the same inputs in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.gpu.ragged import Heads, relative_error
from kernels import reference_layer

_TOKENS = 7


def layer_cases(
    device: torch.device, dtypes: list[torch.dtype], tolerance: dict[torch.dtype, float], *,
    small: bool,
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:  # fmt: skip
    """Every kernel, dtype and variant."""
    width = 80 if small else 4096
    heads = Heads(4, 2, 16) if small else Heads()
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        limit = tolerance[dtype]
        for variant in ("plain", "residual", "rows"):
            yield (
                f"add_rms_norm, {kind}, {variant}",
                partial(check_norm, device, dtype, width, variant, limit),
            )
        for has_norm in (False, True):
            name = f"rope_store, {kind}" + (", with norms" if has_norm else "")
            yield name, partial(check_rope, device, dtype, heads, has_norm, limit)
        yield f"silu_mul, {kind}", partial(check_silu, device, dtype, width, limit)


def check_norm(
    device: torch.device, dtype: torch.dtype, width: int, variant: str, limit: float
) -> dict[str, Any]:
    """RMSNorm alone, with the residual's addition, and of some rows only."""
    from kernels.triton_norm import add_rms_norm

    random = torch.Generator().manual_seed(0)
    hidden, added = (_random((_TOKENS, width), dtype, device, random) for _ in range(2))
    weight = _random((width,), dtype, device, random)
    rows = torch.tensor([5, 0, 3], device=device) if variant == "rows" else None
    more = None if variant == "plain" else added
    exact_hidden = hidden.float().clone()
    size = (_TOKENS if rows is None else 3, width)
    exact = torch.empty(size, device=device)
    reference_layer.add_rms_norm(
        exact_hidden, None if more is None else more.float(), weight.float(), 1e-5,
        out=exact, rows=rows,
    )  # fmt: skip
    out = torch.full(size, torch.nan, dtype=dtype, device=device)
    add_rms_norm(hidden, more, weight, 1e-5, out=out, rows=rows)
    errors = (relative_error(out, exact), relative_error(hidden, exact_hidden))
    return {"error_norm": _worst(*errors), "tolerance": limit}


def check_rope(
    device: torch.device, dtype: torch.dtype, heads: Heads, has_norm: bool, limit: float
) -> dict[str, Any]:
    """Rotated queries, and caches in which nothing but the tokens' slots changed."""
    from kernels.triton_rope import rope_store

    random = torch.Generator().manual_seed(0)
    qkv = _random((_TOKENS, (heads.query + 2 * heads.kv) * heads.dim), dtype, device, random)
    angles = 6.3 * torch.rand((_TOKENS, heads.dim // 2), generator=random)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(device, dtype)
    weights = {}
    if has_norm:
        q_weight, k_weight = (_random((heads.dim,), dtype, device, random) for _ in range(2))
        weights = {"q_weight": q_weight, "k_weight": k_weight, "eps": 1e-6}
    slots = torch.tensor([3, 0, -1, 29, 11, -1, 7], device=device)
    size = (30, heads.kv, heads.dim)

    def run(function: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        caches = [torch.full(size, 2.0, dtype=kind, device=device) for _ in range(2)]
        query = torch.full((_TOKENS, heads.query, heads.dim), torch.nan, dtype=kind, device=device)
        own = {k: v.to(kind) if isinstance(v, Tensor) else v for k, v in weights.items()}
        function(qkv.to(kind), cos_sin.to(kind), query, *caches, slots, **own)
        return [query, *caches]

    pairs = zip(run(rope_store, dtype), run(reference_layer.rope_store, torch.float32), strict=True)
    errors = [relative_error(ours, exact) for ours, exact in pairs]
    return {"error_norm": _worst(*errors), "tolerance": limit}


def check_silu(
    device: torch.device, dtype: torch.dtype, width: int, limit: float
) -> dict[str, Any]:
    """The gated activation."""
    from kernels.triton_activation import silu_mul

    random = torch.Generator().manual_seed(0)
    gate_up = _random((_TOKENS, 2 * width), dtype, device, random)
    exact = torch.empty((_TOKENS, width), device=device)
    reference_layer.silu_mul(gate_up.float(), exact)
    out = torch.full((_TOKENS, width), torch.nan, dtype=dtype, device=device)
    return {"error_norm": relative_error(silu_mul(gate_up, out), exact), "tolerance": limit}


def _random(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device, random: torch.Generator
) -> Tensor:
    return torch.randn(size, generator=random).to(device, dtype)


def _worst(*errors: float) -> float:
    """The largest; NaN is larger than any."""
    return max(errors, key=lambda error: error if error == error else float("inf"))

"""The fused element-wise kernels against the reference: Triton's in the interpreter or on a GPU,
and those compiled for a CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import reference_layer as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
_TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 3.2e-2}
"""The interpreter cuts to bfloat16 where a GPU rounds: up to two units in the last place."""


CASES = [("triton", dtype) for dtype in DTYPES]
if DEVICE == "cpu":
    CASES.append(("cpu", torch.float32))

in_every_type = pytest.mark.parametrize(("fused", "dtype"), CASES, indirect=["fused"])
in_float32 = pytest.mark.parametrize(
    "fused", [name for name, dtype in CASES if dtype == torch.float32], indirect=True
)


@pytest.fixture
def fused(request: pytest.FixtureRequest) -> Any:
    return import_module(f"kernels.{request.param}_layer")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, device=DEVICE, dtype=dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = _TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@in_every_type
@pytest.mark.parametrize("width", [24, 64, 200])
@pytest.mark.parametrize("has_added", [True, False])
def test_norm_adds_the_residual_in_place(
    fused: Any, dtype: torch.dtype, width: int, has_added: bool
) -> None:
    hidden, weight = random(5, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    wide = random(5, 2 * width, dtype=dtype, seed=2)  # rows that do not lie side by side
    added = wide[:, :width] if has_added else None
    ours, theirs = hidden.clone(), hidden.clone()
    out = fused.add_rms_norm(ours, added, weight, 1e-5, out=poison(5, width, dtype=dtype))
    close(out, reference.add_rms_norm(theirs, added, weight, 1e-5, out=torch.empty_like(out)))
    close(ours, theirs)
    assert torch.equal(ours, hidden) != has_added


@pytest.mark.parametrize("fused", ["triton"], indirect=True)
def test_norm_of_large_values_sums_in_float32(fused: Any) -> None:
    hidden = random(2, 64, dtype=torch.float16) * 1000  # squares are beyond float16
    out = fused.add_rms_norm(
        hidden, None, torch.ones_like(hidden[0]), 0.0, out=torch.empty_like(hidden)
    )
    close(out.float().square().mean(-1).half(), torch.ones(2, device=DEVICE).half())


@in_float32
def test_norm_of_chosen_rows_leaves_the_residual_alone(fused: Any) -> None:
    hidden, added, weight = random(6, 24), random(6, 24, seed=1), random(24, seed=2)
    rows = torch.tensor([4, 0, 4], device=DEVICE)
    before = hidden.clone()
    out = fused.add_rms_norm(hidden, added, weight, 1e-5, out=poison(3, 24), rows=rows)
    whole = torch.empty(6, 24, device=DEVICE)
    reference.add_rms_norm(before.clone(), added, weight, 1e-5, out=whole)
    close(out, whole[rows])
    assert torch.equal(hidden, before)
    nothing = torch.empty(0, 24, device=DEVICE)
    assert fused.add_rms_norm(hidden, added, weight, 1e-5, out=nothing, rows=rows[:0]).numel() == 0


@in_every_type
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 24), (10, 10, 8), (12, 4, 80)]
)
@pytest.mark.parametrize("has_norm", [True, False])
def test_rope_stores_what_it_rotated(
    fused: Any, dtype: torch.dtype, q_heads: int, kv_heads: int, head_dim: int, has_norm: bool
) -> None:
    slots = torch.tensor([7, -1, 0, 11, -1], device=DEVICE)
    qkv = random(5, (q_heads + 2 * kv_heads) * head_dim, dtype=dtype)
    cos_sin = random(5, head_dim, dtype=dtype, seed=1)
    norm = {}
    if has_norm:
        norm = {
            "q_weight": random(head_dim, dtype=dtype, seed=2),
            "k_weight": random(head_dim, dtype=dtype, seed=3),
            "eps": 1e-6,
        }
    results = []
    for function in (fused.rope_store, reference.rope_store):
        query = poison(5, q_heads, head_dim, dtype=dtype)
        caches = [poison(12, kv_heads, head_dim, dtype=dtype) for _ in range(2)]
        assert function(qkv, cos_sin, query, *caches, slots, **norm) is query
        results.append((query, *caches))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)
    _, keys, values = results[0]
    unwritten = torch.ones(12, dtype=torch.bool)
    unwritten[[7, 0, 11]] = False
    assert keys[unwritten].isnan().all() and values[unwritten].isnan().all()
    own = qkv.view(5, -1, head_dim)[[2, 0, 3], q_heads + kv_heads :]
    assert torch.equal(values[[0, 7, 11]], own)


@in_float32
def test_rope_turns_by_the_position_alone(fused: Any) -> None:
    """Products of rotated queries and keys depend on the distance (RoFormer, section 3.4.2)."""
    half, positions = 8, torch.arange(6, device=DEVICE)
    angles = positions[:, None] / 10 ** torch.linspace(0, 3, half, device=DEVICE)
    one = random(1, 3 * 16).expand(6, -1).contiguous()
    query, keys = poison(6, 1, 16), poison(6, 1, 16)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    fused.rope_store(one, cos_sin, query, keys, poison(6, 1, 16), positions)
    products = query[:, 0] @ keys[:, 0].T
    for distance in range(-4, 5):
        same = products.diagonal(distance)
        close(same, same[:1].expand_as(same).contiguous() + 0)
    close(query[0, 0], one[0, :16])


@in_float32
def test_a_narrow_cache_gets_the_rounded_keys(fused: Any) -> None:
    qkv, cos_sin = random(3, 4 * 16), random(3, 16, seed=1)
    slots = torch.arange(3, device=DEVICE)
    results = []
    for function in (fused.rope_store, reference.rope_store):
        caches = [poison(3, 1, 16, dtype=torch.bfloat16) for _ in range(2)]
        function(qkv, cos_sin, poison(3, 2, 16), *caches, slots)
        results.append(caches)
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


@in_every_type
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("width", [8, 96, 1030])
def test_silu_times_up(fused: Any, dtype: torch.dtype, width: int) -> None:
    gate_up = 30 * random(3, 2 * width, dtype=dtype)  # far enough for exp(-gate) to overflow
    out = fused.silu_mul(gate_up, poison(3, width, dtype=dtype))
    close(out, reference.silu_mul(gate_up, torch.empty_like(out)))
    gate, up = gate_up.chunk(2, dim=-1)
    close(out, (torch.nn.functional.silu(gate.float()) * up.float()).to(dtype))


def test_a_slot_beyond_the_cache_is_an_error() -> None:
    if DEVICE != "cpu":
        pytest.skip("of the kernels that are compiled for a CPU")
    fused = import_module("kernels.cpu_layer")
    arguments = random(2, 64), random(2, 16), poison(2, 2, 16)
    for slots in ([0, 4], [0]):
        with pytest.raises(IndexError, match="slot of the cache"):
            fused.rope_store(*arguments, poison(4, 1, 16), poison(4, 1, 16), torch.tensor(slots))

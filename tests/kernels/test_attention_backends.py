"""Every backend against the reference: shuffled pages in a pool that is NaN wherever nothing may
be read, outputs that are NaN until written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from attention_cases import Shape, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, reference
from kernels.cpu_prefill import Workspace

MIXED = [(1, 70), (1, 16), (5, 40), (20, 20), (1, 1), (2, 9), (3, 0), (1, 0), (0, 12), (4, 50)]
GEMM = [(70, 70), (1, 9), (60, 100), (40, 130)]  # chunks too long for the CPU's compiled rows
DECODES = [(1, 100), (1, 1), (1, 33), (1, 0)]
SHAPES = {
    "page1": Shape(page_size=1),
    "page2": Shape(page_size=2),
    "page16": Shape(page_size=16),
    "page64": Shape(page_size=64),
    "heads equal": Shape(q_heads=2, kv_heads=2),
    "group of 4": Shape(q_heads=4, kv_heads=1, head_dim=32),
    "group of 3": Shape(q_heads=3, kv_heads=1, head_dim=24),
    "dim64": Shape(q_heads=2, kv_heads=1, head_dim=64, page_size=8),
    "float16": Shape(dtype=torch.float16),
}
OPTIONS = {
    "plain": {},
    "window": {"window": 9},
    "softcap": {"softcap": 2.5},
    "both": {"window": 17, "softcap": 4.0},
}


@pytest.fixture(params=["cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "cpu":
        return cpu
    skip_where_compiled()
    from kernels import triton_attention

    return triton_attention


def skip_where_compiled() -> None:
    """Tensors here are on the CPU: Triton's kernels must be interpreted."""
    if torch.cuda.is_available():
        pytest.skip("test_triton_attention.py and test_triton_gpu.py run the compiled kernels")


def assert_equal_reference(
    backend: ModuleType, lens: list[tuple[int, int]], shape: Shape, **options: float
) -> None:
    batch = make_batch(lens, shape, window=options.get("window"))
    scale = shape.head_dim**-0.5
    expected = reference.paged_attention(*batch, scale=scale, **options)
    tolerance = 1e-5 if shape.dtype == torch.float32 else 2e-3
    ours = backend.paged_attention(*batch, scale=scale, out=batch.outside(), **options)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    ours = backend.contiguous_attention(
        *batch.contiguous(), scale=scale, out=batch.outside(), **options
    )
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_mixed_batch(backend: ModuleType, shape: Shape) -> None:
    assert_equal_reference(backend, MIXED, shape)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("lens", [MIXED, DECODES], ids=["mixed", "decodes"])
def test_window_and_softcap(
    backend: ModuleType, lens: list[tuple[int, int]], options: dict[str, float]
) -> None:
    assert_equal_reference(backend, lens, Shape(page_size=4), **options)


@pytest.mark.parametrize("lens", [[(1, 60), (1, 31)], [(6, 60), (1, 31)]], ids=["decode", "chunk"])
def test_wrong_page_is_noticed(backend: ModuleType, lens: list[tuple[int, int]]) -> None:
    """Two pages exchanged in one table change that sequence far beyond the tolerance above."""
    batch = make_batch(lens)
    right = backend.paged_attention(*batch, scale=0.25)
    batch.block_table[0, 1] = batch.block_table[1, 0]
    wrong = backend.paged_attention(*batch, scale=0.25)
    tokens = lens[0][0]
    assert (right[:tokens] - wrong[:tokens]).abs().amax(dim=(1, 2)).min() > 1e-2
    torch.testing.assert_close(right[tokens:], wrong[tokens:], rtol=0, atol=0)


def test_mapped_nan_is_not_hidden(backend: ModuleType) -> None:
    batch = make_batch([(1, 40), (4, 40)])
    batch.value_cache[batch.block_table[:, 1].long() * 16 + 3] = torch.nan
    batch.key_cache[batch.block_table[:, 0].long() * 16 + 3] = torch.nan
    assert backend.paged_attention(*batch, scale=0.25).isnan().any(dim=2).all()


def test_sliced_query_and_preallocated_output(backend: ModuleType) -> None:
    """Query as a slice of a fused projection, output as the rows of a larger buffer."""
    batch = make_batch([(1, 20), (4, 20)])
    fused = torch.randn(5, 8, 16)
    fused[:, 2:6] = batch.query
    expected = reference.paged_attention(*batch, scale=0.25)
    buffer = torch.full((9, 4, 16), torch.nan)
    sliced = batch._replace(query=fused[:, 2:6])
    returned = backend.paged_attention(*sliced, scale=0.25, out=buffer[:5])
    torch.testing.assert_close(buffer[:5], expected)
    assert returned.data_ptr() == buffer.data_ptr()
    assert buffer[5:].isnan().all()


def test_peaked_logits_stay_finite(backend: ModuleType) -> None:
    batch = make_batch([(1, 80), (3, 40)])
    batch.query.mul_(1e3)
    expected = reference.paged_attention(*batch, scale=1.0)
    torch.testing.assert_close(
        backend.paged_attention(*batch, scale=1.0), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("page_size", [1, 16])
def test_cpu_long_chunks(page_size: int, options: dict[str, float]) -> None:
    assert_equal_reference(cpu, GEMM, Shape(page_size=page_size), **options)


@pytest.fixture
def widened_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies the bit patterns of bfloat16 in tl.dot: widen them first."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def widen(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: object, a: object, b: object, *rest: object) -> object:
        return original(self, widen(a), widen(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def test_triton_in_bfloat16(widened_dot: None) -> None:
    from kernels import triton_attention

    skip_where_compiled()
    shape = Shape(dtype=torch.bfloat16)
    batch = make_batch(MIXED, shape)
    expected = reference.paged_attention(*batch, scale=0.25)
    ours = triton_attention.paged_attention(*batch, scale=0.25, out=batch.outside())
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


ragged = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 150)).map(lambda p: (p[0], p[0] + p[1])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    lens=ragged,
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (5, 1)]),
    head_dim=st.sampled_from([8, 16, 20, 80]),
    page_size=st.sampled_from([1, 2, 3, 16, 64]),
    window=st.none() | st.integers(1, 80),
    softcap=st.none() | st.floats(0.5, 50.0),
)
def test_cpu_equals_reference_on_any_batch(
    lens: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    page_size: int,
    window: int | None,
    softcap: float | None,
) -> None:
    shape = Shape(*heads, head_dim, page_size)
    options = {"window": window, "softcap": softcap}
    if sum(queries for queries, _ in lens):
        assert_equal_reference(cpu, lens, shape, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 3])
def test_cpu_result_does_not_depend_on_threads(threads: int) -> None:
    """Cuts at other places, the same attention."""
    from kernels.cpu_decode import KVPages, decode_rows

    batch = make_batch(DECODES * 2, Shape(page_size=8))
    expected = reference.paged_attention(*batch, scale=0.25)
    kv = KVPages(
        batch.key_cache.numpy().reshape(-1),
        batch.value_cache.numpy().reshape(-1),
        batch.block_table.numpy(),
        torch.empty(0, dtype=torch.int64).numpy(),
        8,
        2,
    )
    out = batch.outside()
    bounds, lens = batch.query_start_loc.numpy(), batch.seq_lens.numpy()
    left = decode_rows(threads, batch.query.numpy(), kv, bounds, lens, 1, 0.25, 0, 0.0, out.numpy())
    assert left == 0
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


ALL_SHARES = """
import sys
sys.path.insert(0, "tests/kernels")
import test_attention_backends as tests
tests.test_cpu_result_does_not_depend_on_threads(3)
"""
NO_RUNTIME = """
import ctypes
import numba
import torch
ctypes.CDLL = lambda name: None
from kernels.cpu_compiled import num_threads
assert num_threads() == 1
"""


@pytest.mark.parametrize("before", ["", NO_RUNTIME], ids=["fewer threads", "no OpenMP"])
def test_threads_that_are_not_granted_leave_nothing_out(before: str) -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": "2"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", before + ALL_SHARES]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_cpu_reads_bfloat16_pages() -> None:
    assert_equal_reference(cpu, MIXED, Shape(dtype=torch.bfloat16))


def test_a_workspace_grown_in_inference_mode_serves_outside_of_it() -> None:
    workspace = Workspace()
    with torch.inference_mode():
        workspace.take(4, 4)
    ones = torch.ones(4, 4)
    out = workspace.take(4, 4)
    torch.mm(ones, ones, out=out)
    assert (out == 4).all()

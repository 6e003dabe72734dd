"""The roofline against sums done by hand, and against counting every query and key."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.compose import Composer, hydra_session
from harness.config import ConfigError, ExecutorConfig
from harness.engine.cost.gpu import GPUS, Gpu
from harness.engine.cost.roofline import GEMM_TILE_ROWS, Host, Roofline, _num_pairs
from harness.engine.device.model_shape import LayerGroup, ModelShape, model_preset, model_shape
from harness.engine.plan import Chunk, StepPlan
from harness.engine.request import SamplingParams
from harness.runs.one_run import environment_of, execute_run, simulated_device

SLOW_MATHS = Gpu(1e9, bytes_per_s=1e30, flops=1e6, pcie_bytes_per_s=1e3)
SLOW_MEMORY = Gpu(1e9, bytes_per_s=1e6, flops=1e30, pcie_bytes_per_s=1e3)
SHAPE = ModelShape(2, 4, 2, 8, 32, 100, 512, 2, 5_000, num_embeddings=3_200)
KV_BYTES = 2 * 2 * 2 * 8 * 2


def roofline(gpu: Gpu, page_size: int = 4, window: int | None = None, **host: float) -> Roofline:
    return Roofline(gpu, SHAPE, page_size, [LayerGroup(window, (0, 1))], Host(**host))


def chunk(start: int, count: int, *, samples: bool = True, seq_id: int = 0) -> Chunk:
    draws = (SamplingParams(),) if samples else ()
    return Chunk(seq_id, start, list(range(count)), draws, 0)


def test_a_decode_reads_weights_and_whole_pages() -> None:
    plan = StepPlan((chunk(9, 1), chunk(3, 1, seq_id=1)))
    layers, output = 1_800 * 2, 100 * 32 * 2
    pages = (3 + 1) * 4 * KV_BYTES
    written = 2 * KV_BYTES
    wanted = (layers + output + pages + written) / 1e6
    assert roofline(SLOW_MEMORY).step_s(plan) == pytest.approx(wanted)


def test_a_prompt_takes_operations_by_the_tile_and_attention_by_the_square() -> None:
    plan = StepPlan((chunk(0, 100),))
    rows = 2 * GEMM_TILE_ROWS
    attention = 4 * 4 * 8 * 2 * (100 * 101 // 2)
    output = 2 * 100 * 32 * GEMM_TILE_ROWS
    wanted = (2 * 1_800 * rows + attention + output) / 1e6
    assert roofline(SLOW_MATHS).step_s(plan) == pytest.approx(wanted)
    unsampled = StepPlan((chunk(0, 100, samples=False),))
    assert roofline(SLOW_MATHS).step_s(unsampled) == pytest.approx(wanted - output / 1e6)


def test_large_pages_are_read_to_their_end() -> None:
    plan = StepPlan((chunk(9, 1),))
    times = [roofline(SLOW_MEMORY, size).step_s(plan) for size in (1, 4, 16, 256)]
    assert times == sorted(times) and times[-1] > times[0]


def test_a_window_reads_its_pages_alone() -> None:
    near, far = (StepPlan((chunk(start, 1),)) for start in (8, 400))
    narrow = roofline(SLOW_MEMORY, window=8)
    assert narrow.step_s(near) == narrow.step_s(far)
    assert roofline(SLOW_MEMORY).step_s(far) > roofline(SLOW_MEMORY).step_s(near)


def test_copies_swaps_and_the_host_cost_what_they_move() -> None:
    page = 4 * KV_BYTES
    pairs = (PageCopy(0, 1), PageCopy(2, 3))
    assert roofline(SLOW_MEMORY).step_s(StepPlan((), copies=pairs)) == pytest.approx(4 * page / 1e6)
    swap = roofline(SLOW_MEMORY, step_s=1.0, sequence_s=0.5, transfer_s=0.25)
    plan = StepPlan((), saves=pairs, restores=pairs[:1])
    assert swap.step_s(plan) == pytest.approx(1.0 + 3 * (0.25 + page / 1e3))
    decode = StepPlan((chunk(0, 1), chunk(0, 1, seq_id=1)))
    added = swap.step_s(decode) - roofline(SLOW_MEMORY).step_s(decode)
    assert added == pytest.approx(2.0)


@given(st.integers(0, 40), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 30)))
def test_pairs_are_what_counting_gives(start: int, count: int, window: int | None) -> None:
    read = [min(position + 1, window or 1000) for position in range(start, start + count)]
    assert _num_pairs(start, count, window) == sum(read)


def test_a_paper_s_decode_is_bound_by_its_weights() -> None:
    """OPT-13B on an A100: 25.7 GB of weights at 1,555 GB/s are 16.5 ms."""
    shape = model_shape(model_preset("opt_13b"))
    cost = Roofline(GPUS["a100_40gb"], shape, 16, [LayerGroup(None, tuple(range(40)))])
    alone = cost.step_s(StepPlan((chunk(0, 1),)))
    assert alone == pytest.approx(25.7e9 / 1555e9, rel=0.01)
    many = StepPlan(tuple(chunk(511, 1, seq_id=k) for k in range(30)))
    kv_s = 30 * 512 * shape.kv_bytes_per_token / 1555e9
    assert cost.step_s(many) == pytest.approx(alone + kv_s, rel=0.01)


def run(*overrides: str) -> dict[str, Any]:
    arguments = ["executor=simulated", "workload=sharegpt", "workload.num_requests=30",
                 "model=opt_13b", "kv.pool_tokens=8192", *overrides]  # fmt: skip
    with hydra_session():
        config = Composer().run(arguments)
    device = simulated_device(config)
    with TemporaryDirectory() as folder:
        environment = environment_of(device)
        record = execute_run(config, "id", "label", device, environment, Path(folder))
    return dict(record.summary[0])


def test_a_faster_gpu_is_faster_and_the_host_is_not_free() -> None:
    a100 = run("executor.cost=roofline")
    h100 = run("executor.cost=roofline", "executor.gpu=h100")
    busy = run("executor.cost=roofline", "executor.host_us=20000")
    assert a100["tpot_ms"] > 25.7e9 / 1555e9 * 1e3
    ratio = h100["output_tokens_per_s"] / a100["output_tokens_per_s"]
    assert 3350 / 1555 * 0.9 < ratio < 989 / 312
    assert busy["tpot_ms"] > a100["tpot_ms"] + 20 * 0.9


def test_a_cost_that_no_run_could_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs executor=simulated"):
        ExecutorConfig(kind="torch", cost="roofline")
    with pytest.raises(ConfigError, match=r"executor\.host_us=-1 must be at least 0"):
        ExecutorConfig(kind="simulated", cost="roofline", host_us=-1.0)

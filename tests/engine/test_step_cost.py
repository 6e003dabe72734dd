"""The roofline against sums done by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.compose import Composer, hydra_session
from harness.config import ConfigError, ExecutorConfig
from harness.engine.cost.gemm import TILE_HEIGHTS, equivalent_rows
from harness.engine.cost.gpu import GPUS, Gpu
from harness.engine.cost.roofline import Efficiency, Overheads, Roofline
from harness.engine.cost.step_work import StepWork
from harness.engine.device.model_shape import ModelShape, model_preset, model_shape
from harness.runs.one_run import environment_of, execute_run, simulated_device

SLOW_MATHS = Gpu(1e9, bytes_per_s=1e30, flops=1e6, pcie_bytes_per_s=1e3, peer_bytes_per_s=1e30)
SLOW_MEMORY = Gpu(1e9, bytes_per_s=1e6, flops=1e30, pcie_bytes_per_s=1e3, peer_bytes_per_s=1e30)
SLOW_LINK = Gpu(1e9, bytes_per_s=1e30, flops=1e30, pcie_bytes_per_s=1e30, peer_bytes_per_s=1e6)
SHAPE = ModelShape(2, 4, 2, 8, 32, 100, 512, 2, 5_000, num_embeddings=3_200)
KV_BYTES = 2 * 2 * 2 * 8 * 2
PAGE_BYTES = 4 * KV_BYTES


def roofline(gpu: Gpu, num_gpus: int = 1, overheads: Overheads | None = None) -> Roofline:
    return Roofline(
        gpu,
        SHAPE,
        page_bytes=PAGE_BYTES,
        token_bytes=KV_BYTES,
        page_transfers=4,
        num_gpus=num_gpus,
        efficiency=Efficiency(gemm=1.0, attention=1.0),
        overheads=overheads or Overheads(),
    )


def decode(num: int, pages: int = 1, pairs: int = 1) -> StepWork:
    return StepWork(num, num, decode_pages=pages, decode_pairs=pairs, num_logits=num)


def prompt(count: int, *, num_logits: int = 1) -> StepWork:
    pairs = 2 * count * (count + 1) // 2
    return StepWork(count, 1, 1, prompt_pages=1, prompt_pairs=pairs, num_logits=num_logits)


def test_a_decode_reads_weights_and_whole_pages_and_writes_logits() -> None:
    layers, output = 1_800 * 2, 100 * 32 * 2
    logits = 2 * 2 * 100 * 4
    wanted = (layers + output + logits + 4 * PAGE_BYTES + 2 * KV_BYTES) / 1e6
    assert roofline(SLOW_MEMORY).work_s(decode(2, pages=4)) == pytest.approx(wanted)


def test_a_prompt_takes_operations_by_the_tile_and_attention_by_the_square() -> None:
    attention = 4 * 4 * 8 * 2 * (100 * 101 // 2)
    output = 2 * 100 * 32 * equivalent_rows(1)
    wanted = (2 * 1_800 * equivalent_rows(100) + attention + output) / 1e6
    cost = roofline(SLOW_MATHS)
    assert cost.work_s(prompt(100)) == pytest.approx(wanted)
    assert cost.work_s(prompt(100, num_logits=0)) == pytest.approx(wanted - output / 1e6)


def test_a_prompt_s_attention_does_not_hide_behind_a_decode_s() -> None:
    both = StepWork(0, 2, 1, 0, 10, 1, 1_000_000)
    balanced = Gpu(1e9, bytes_per_s=1e3, flops=1e6, pcie_bytes_per_s=1.0, peer_bytes_per_s=1.0)
    cost = roofline(balanced)
    reads = both._replace(num_tokens=1, decode_pages=10_000)
    alone = cost.work_s(reads._replace(prompt_pages=0, prompt_pairs=0))
    assert cost.work_s(reads) - alone == pytest.approx(1_000_000 * 4 * 4 * 8 / 1e6)


def test_rows_are_those_of_the_quickest_tile() -> None:
    assert equivalent_rows(0) == 0
    assert equivalent_rows(256) == 256
    assert equivalent_rows(1) == equivalent_rows(16) < equivalent_rows(17)
    assert equivalent_rows(257) > equivalent_rows(256) + 64
    assert equivalent_rows(100 * 256) == 100 * 256


@given(st.integers(1, 3000))
def test_efficiency_grows_to_one_and_time_never_falls(num_rows: int) -> None:
    rows = equivalent_rows(num_rows)
    assert num_rows <= rows <= equivalent_rows(num_rows + 1)
    of_tile = min(1.0, 1.5 * num_rows / (TILE_HEIGHTS[-1] / 2 + num_rows))
    assert num_rows / rows <= of_tile + 1e-9


def test_copies_swaps_and_the_host_cost_what_they_move() -> None:
    copied = StepWork(num_copied=2)
    assert roofline(SLOW_MEMORY).work_s(copied) == pytest.approx(4 * PAGE_BYTES / 1e6)
    swap = roofline(SLOW_MEMORY, overheads=Overheads(1.0, 0.5, 0.25))
    moved = swap.work_s(StepWork(num_moved=3))
    assert moved == pytest.approx(1.0 + 3 * (4 * 0.25 + PAGE_BYTES / 1e3))
    added = swap.work_s(decode(2)) - roofline(SLOW_MEMORY).work_s(decode(2))
    assert added == pytest.approx(2.0)


def test_gpus_share_bytes_and_operations_and_pay_for_sums() -> None:
    for gpu, work in ((SLOW_MEMORY, decode(2, pages=4)), (SLOW_MATHS, prompt(100))):
        assert roofline(gpu, 4).work_s(work) == pytest.approx(roofline(gpu).work_s(work) / 4)
    moved = StepWork(num_moved=3)
    assert roofline(SLOW_MEMORY, 2).work_s(moved) == pytest.approx(3 * PAGE_BYTES / 2e3)
    row_bytes, sums = 32 * 2, 2 * 2
    for count in (2, 4):
        linked = roofline(SLOW_LINK, count, Overheads(allreduce_s=0.125)).work_s(prompt(100))
        sent = 2 * (count - 1) / count * 100 * row_bytes
        assert linked == pytest.approx(sums * (0.125 + sent / 1e6))
    assert roofline(SLOW_LINK, 1, Overheads(allreduce_s=1.0)).work_s(prompt(100)) < 1e-9


def test_a_paper_s_decode_is_bound_by_its_weights() -> None:
    """OPT-13B on an A100: 25.7 GB of weights at 1,555 GB/s are 16.5 ms."""
    shape = model_shape(model_preset("opt_13b"))
    token_bytes = shape.kv_bytes_per_token
    cost = Roofline(GPUS["a100_40gb"], shape, page_bytes=16 * token_bytes, token_bytes=token_bytes)
    alone = cost.work_s(decode(1))
    assert alone == pytest.approx(25.7e9 / 1555e9, rel=0.01)
    many = cost.work_s(decode(30, pages=30 * 32, pairs=30 * 40 * 512))
    assert many == pytest.approx(alone + 30 * 512 * token_bytes / 1555e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions", "kv_kib"),
    [("opt_13b", 12.9, 800), ("llama_13b", 13.0, 800), ("opt_66b", 65.7, 2304),
     ("opt_175b", 174.6, 4608)],
)  # fmt: skip
def test_presets_are_the_paper_s_models(name: str, billions: float, kv_kib: int) -> None:
    shape = model_shape(model_preset(name))
    assert shape.num_parameters == pytest.approx(billions * 1e9, rel=0.01)
    assert shape.kv_bytes_per_token == kv_kib * 1024


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


def test_two_gpus_are_not_twice_as_fast() -> None:
    one = run("executor.cost=roofline")
    two = run("executor.cost=roofline", "engine.tensor_parallel=2")
    free = run("executor.cost=roofline", "engine.tensor_parallel=2", "executor.allreduce_us=0")
    gain = two["output_tokens_per_s"] / one["output_tokens_per_s"]
    assert 1.5 < gain < free["output_tokens_per_s"] / one["output_tokens_per_s"] < 2


def test_a_draft_model_takes_its_time() -> None:
    """Drafts that never stand cost passes and gain nothing; the fewer, the cheaper."""
    drafting = ("executor.cost=roofline", "model=small", "engine.speculation.acceptance=0",
                "engine.speculation.method=draft_model",
                "engine.speculation.draft=small_draft")  # fmt: skip
    none = run("executor.cost=roofline", "model=small", "executor.host_us=100")
    times = [
        run(*drafting, f"engine.speculation.num_tokens={k}", "executor.host_us=100")["tpot_ms"]
        for k in (1, 4)
    ]
    assert times[0] > none["tpot_ms"] + 0.1 * 0.9
    assert times[1] > none["tpot_ms"] + 4 * 0.1 * 0.9


def test_a_cost_that_no_run_could_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs executor=simulated"):
        ExecutorConfig(kind="torch", cost="roofline")
    with pytest.raises(ConfigError, match=r"executor\.host_us=-1 must be at least 0"):
        ExecutorConfig(kind="simulated", cost="roofline", host_us=-1.0)
    with pytest.raises(ConfigError, match=r"executor\.gemm_efficiency=1\.5: must be in"):
        ExecutorConfig(kind="simulated", cost="roofline", gemm_efficiency=1.5)
    with pytest.raises(ConfigError, match="experiments calibrate"):
        ExecutorConfig(kind="simulated", cost="calibrated")

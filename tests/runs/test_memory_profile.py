"""On a device with counters the pool is what weights and a measured step leave of its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from counted_memory import CountedMemory

from harness.compose import Composer, hydra_session
from harness.config import ConfigError, RunConfig
from harness.engine.device.model_shape import model_shape
from harness.runs.code_hash import CodeHashes
from harness.runs.device_memory import CudaMemory, DeviceMemory
from harness.runs.jobs import Job, make_job
from harness.runs.memory_profile import largest_step, pages_of
from harness.runs.one_run import environment_of, execute_run
from harness.runs.out_of_memory import OutOfMemoryError, explained, is_out_of_memory
from harness.runs.pool_size import BesidePool, estimated_beside_pool, pool_pages
from harness.runs.store import RunStore, StoredRun
from harness.runs.torch_device import TorchDevice
from harness.runs.worker import DeviceCache, JobResult, do_job

MIB = 2**20
RUN = (
    "model=tiny",
    "model.dtype=bfloat16",  # whose products go through torch.mm, as on a GPU
    "workload=fixed",
    "workload.prompt_len=24",
    "workload.output_len=4",
    "workload.max_len=64",
    "workload.num_requests=6",
    "engine.token_budget=64",
    "engine.max_num_seqs=4",
)


def composed(*overrides: str) -> RunConfig:
    with hydra_session():
        return Composer().run(["executor=torch", "device=cpu", "tracking=none", *overrides])


class _Devices(DeviceCache):
    """Devices whose memory is counted."""

    def __init__(self, memory: CountedMemory) -> None:
        super().__init__()
        self.counted = memory
        self.num_made = 0

    def _make(self, config: RunConfig) -> TorchDevice:
        self.num_made += 1
        return TorchDevice(config.model, config.device, self.counted)


@pytest.fixture
def memory() -> Iterator[CountedMemory]:
    counted = CountedMemory(8 * MIB)
    with counted:
        yield counted


def job(config: RunConfig, folder: Path) -> Job:
    return make_job(config, "", folder, "cpu", CodeHashes())


def stored(of: Job) -> StoredRun:
    run = RunStore(of.root).find(of.run_id)
    assert run is not None
    return run


def test_the_largest_step_asks_for_all_there_may_be() -> None:
    config = composed("model=tiny", "engine.token_budget=100", "engine.max_num_seqs=7")
    plan = largest_step(config, model_shape(config.model), 500)
    lens = [len(chunk.token_ids) for chunk in plan.chunks]
    assert sum(lens) == 100 and len(lens) == 7 and max(lens) - min(lens) <= 1
    assert all(len(chunk.draws) == 1 for chunk in plan.chunks)
    assert pages_of(plan) == math.ceil(max(lens) / 16)


def test_a_prompt_that_is_not_split_may_be_longer_than_the_budget() -> None:
    config = composed("model=tiny", "engine.token_budget=100", "engine.schedule=prefill_first")
    for longest, expected in ((40, 100), (500, 500)):
        plan = largest_step(config, model_shape(config.model), longest)
        assert sum(len(chunk.token_ids) for chunk in plan.chunks) == expected


def test_drafts_and_beams_have_the_rows_that_they_need() -> None:
    drafting = composed(
        "model=tiny", "engine.token_budget=20", "engine.max_num_seqs=8",
        "engine.speculation.method=ngram", "engine.speculation.num_tokens=4",
    )  # fmt: skip
    plan = largest_step(drafting, model_shape(drafting.model), 500)
    assert sum(1 + chunk.num_drafts for chunk in plan.chunks) == 20
    beams = composed(
        "model=tiny", "workload.beam_width=3", "engine.max_num_seqs=6", "workload.output=free"
    )
    plan = largest_step(beams, model_shape(beams.model), 500)
    assert [chunk.num_candidates for chunk in plan.chunks] == [6] * 6
    assert not any(chunk.draws for chunk in plan.chunks)


def test_activations_are_measured_once_for_the_same_settings(memory: CountedMemory) -> None:
    config = composed(*RUN)
    device = TorchDevice(config.model, config.device, memory)
    beside = device.beside_pool(config, 64)
    assert beside.source == "measured"
    assert beside.weight_bytes >= device.shape.weight_bytes
    hidden = 64 * device.shape.hidden_size * 2
    logits = 4 * device.shape.vocab_size * 2
    assert beside.activation_bytes > hidden + logits
    assert device.beside_pool(composed(*RUN, "kv.memory_fraction=0.5"), 64) == beside
    assert memory.allocated_bytes() == beside.weight_bytes, "the measured step left something"
    larger_pages = device.beside_pool(composed(*RUN, "kv.page_size=256"), 64)
    assert larger_pages == beside, "the pool that the step lies on counts as activations"
    wide = device.beside_pool(
        composed(*RUN, "engine.token_budget=256", "engine.max_num_seqs=32"), 64
    )
    assert wide.weight_bytes == beside.weight_bytes
    assert wide.activation_bytes > 3 * beside.activation_bytes
    drawn = device.beside_pool(composed(*RUN, "workload.temperature=1.0"), 64)
    assert drawn.activation_bytes > beside.activation_bytes + 3 * 4 * logits  # sorted in float64


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_a_run_stays_within_its_share_of_the_memory(
    memory: CountedMemory, tmp_path: Path, fraction: float
) -> None:
    config = composed(*RUN, f"kv.memory_fraction={fraction}")
    devices = _Devices(memory)
    done = job(config, tmp_path)
    assert do_job(done, devices) == JobResult(done.run_id, "complete", "", pytest.approx(0, abs=99))
    (row,) = stored(done).summary
    page_bytes = row["pool_bytes"] / row["pool_pages"]
    left = fraction * memory.total_bytes - row["pool_bytes"]
    assert row["activation_source"] == "measured"
    device = devices.get(config)
    beside = device.beside_pool(config, 64)
    assert row["activation_bytes"] == beside.activation_bytes
    assert 0 <= left - beside.weight_bytes - beside.activation_bytes < page_bytes
    assert row["peak_memory_bytes"] <= fraction * memory.total_bytes
    assert row["peak_memory_bytes"] > row["pool_bytes"] + beside.weight_bytes


def test_where_nothing_is_measured_the_formula_is_used_and_said(tmp_path: Path) -> None:
    imagined = composed(*RUN, "kv.memory_fraction=0.5", "device.imagined_memory_gib=0.01")
    device = TorchDevice(imagined.model, imagined.device)
    record = execute_run(imagined, "id", "", device, environment_of(device), tmp_path)
    estimate = estimated_beside_pool(imagined, device.shape)
    assert record.summary[0]["activation_source"] == "estimated"
    assert record.summary[0]["activation_bytes"] == estimate.activation_bytes
    (tmp_path / "fixed").mkdir()
    given = composed(*RUN, "kv.pool_tokens=1024")
    record = execute_run(given, "id", "", device, environment_of(device), tmp_path / "fixed")
    assert record.summary[0]["activation_source"] is None


@pytest.mark.parametrize("source", ["measured", "estimated"])
def test_a_pool_without_room_says_what_took_it(source: str) -> None:
    config = composed(*RUN, "kv.memory_fraction=0.5")
    beside = BesidePool(300 * MIB, 250 * MIB, source)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"0\.29 GiB.*0\.24 GiB of activations \({source}\)"):
        pool_pages(config, model_shape(config.model), None, 1024 * MIB, beside)  # type: ignore[arg-type]


def test_out_of_memory_ends_one_run_and_the_worker_goes_on(
    memory: CountedMemory, tmp_path: Path
) -> None:
    config = composed(*RUN, "kv.memory_fraction=0.9")
    devices = _Devices(memory)
    first, again = job(config, tmp_path / "first"), job(config, tmp_path / "again")
    device = devices.get(config)
    assert device.beside_pool(config, 64).source == "measured"
    before = memory.allocated_bytes()
    memory.fail_above = int(0.85 * memory.total_bytes)
    result = do_job(first, devices)
    assert (result.status, result.is_clean) == ("out_of_memory", True)
    run = stored(first)
    assert run.status == "out_of_memory" and run.error == result.error
    for part in (r"MiB more were asked for", "the pool holds", "(measured)", "lower kv.memory_fr"):
        assert part in run.error
    assert memory.allocated_bytes() == before, "the run left something"
    memory.fail_above = None
    assert do_job(again, devices).status == "complete"
    assert devices.num_made == 1, "the model was loaded again"


def test_a_kernel_out_of_memory_in_mid_run_is_no_other_error(
    memory: CountedMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import cpu

    def fail(*args: object, **kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    config = composed(*RUN, "kv.pool_tokens=512")
    devices = _Devices(memory)
    devices.get(config).beside_pool(config, 64)
    before = memory.allocated_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "paged_attention", fail)
        result = do_job(job(config, tmp_path), devices)
    assert result.status == "out_of_memory" and result.is_clean
    assert (
        "20.00 MiB more were asked for" in result.error and "lower kv.pool_tokens" in result.error
    )
    assert memory.allocated_bytes() == before


def test_a_model_that_does_not_fit_says_what_would_help(
    memory: CountedMemory, tmp_path: Path
) -> None:
    config = composed(*RUN, "kv.memory_fraction=0.9")
    memory.fail_above = 100_000
    result = do_job(job(config, tmp_path), _Devices(memory))
    assert result.status == "out_of_memory" and result.is_clean
    assert "before there was a pool" in result.error and "smaller model" in result.error
    assert memory.allocated_bytes() == 0


def test_what_is_left_behind_costs_the_worker_its_model_then_its_life(
    memory: CountedMemory, tmp_path: Path
) -> None:
    config = composed(*RUN, "kv.pool_tokens=512")
    devices = _Devices(memory)
    assert do_job(job(config, tmp_path / "a"), devices).is_clean
    leak = torch.empty(65 * MIB, dtype=torch.uint8)
    result = do_job(job(config, tmp_path / "b"), devices)
    assert result.status == "failed" and "left" in result.error  # before it starts
    assert not result.is_clean and leak.nbytes
    del leak
    assert do_job(job(config, tmp_path / "c"), devices).is_clean
    assert devices.num_made == 2


def test_a_device_that_failed_is_not_used_again(memory: CountedMemory, tmp_path: Path) -> None:
    config = composed(*RUN, "kv.pool_tokens=512")
    memory.device_fails = True
    result = do_job(job(config, tmp_path), _Devices(memory))
    assert (result.status, result.is_clean) == ("complete", False)


@pytest.mark.parametrize(
    ("error", "is_memory", "asked"),
    [
        (MemoryError("Unable to allocate 5.00 GiB for an array"), True, "5.00 GiB more were"),
        (RuntimeError("CUDA error: out of memory"), True, "more memory was"),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            True,
            "9 bytes more were",
        ),
        (RuntimeError("shapes differ"), False, ""),
        (ValueError("out of memory"), False, ""),
    ],
)
def test_errors_of_memory_are_told_from_others(
    error: Exception, is_memory: bool, asked: str
) -> None:
    assert is_out_of_memory(error) == is_memory
    config = composed("model=tiny")
    expected = OutOfMemoryError if is_memory else type(error)
    with pytest.raises(expected) as raised, explained(config, 2**30, None):
        raise error
    assert asked in str(raised.value)
    assert "engine.swap_tokens" not in str(raised.value)


def test_swapping_is_one_more_thing_to_lower() -> None:
    config = composed("model=tiny", "engine.preemption=swap")
    with pytest.raises(OutOfMemoryError, match=r"engine\.swap_tokens"), explained(config, 1, None):
        raise MemoryError


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_run_stays_within_its_share_of_the_memory(tmp_path: Path) -> None:
    with hydra_session():
        config = Composer().run(
            ["executor=torch", "device=cuda", *RUN, "kv.memory_fraction=0.1", "model=small"]
        )
    device = TorchDevice(config.model, config.device)
    record = execute_run(config, "id", "", device, environment_of(device), tmp_path)
    (row,) = record.summary
    memory: DeviceMemory = CudaMemory()
    assert row["activation_source"] == "measured"
    assert row["peak_memory_bytes"] <= 0.1 * memory.total_bytes
    assert device.is_clean()

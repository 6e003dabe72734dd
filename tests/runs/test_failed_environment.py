"""The environment of a run that failed names the device as that of one which went well does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.config import DeviceConfig, EngineConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.measure.environment import capture_environment
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import Job, make_job
from harness.runs.planned_environment import planned_environment
from harness.runs.torch_device import TorchDevice, describe_device


def environments(folder: Path) -> dict[str, dict[str, object]]:
    """Of each stored run, by its status."""
    return {
        json.loads((path.parent / "status.json").read_text())["status"]: json.loads(
            path.read_text()
        )
        for path in folder.glob("*/environment.json")
    }


@pytest.mark.parametrize(
    ("executor", "name"),
    [
        (["executor=simulated"], "simulated"),
        (["executor=torch", "device=cpu", "device.threads=1"], "cpu"),
    ],
)
def test_a_pool_too_small_fails_on_the_device_that_others_ran_on(command, executor, name):
    sizes = "kv.pool_tokens=32,2048"
    command(*executor, "workload=fixed", "workload.length_scale=0.5", sizes)
    found = environments(Path("results/single"))
    assert found.keys() == {"failed", "complete"}
    assert {each["device"] for each in found.values()} == {name}
    assert {each["threads"] for each in found.values()} == {1}


def job(folder: Path, device: str, config: RunConfig) -> Job:
    return make_job(config, "", folder, device, CodeHashes())


@pytest.mark.parametrize("threads", [None, 2])
def test_a_cpu_is_named_as_the_device_itself_says(tmp_path: Path, threads: int | None):
    config = RunConfig(model=model_preset("tiny"), device=DeviceConfig("cpu", threads))
    planned = job(tmp_path, describe_device(config.device), config)
    device = TorchDevice(config.model, config.device)
    found = planned_environment(planned, capture_environment("none", 1))
    assert (found.device, found.threads) == (device.name, device.threads)


@pytest.mark.parametrize(
    ("planned", "ranks", "device", "threads"),
    [
        ("cuda (NVIDIA H200)", 1, "cuda (NVIDIA H200)", 3),
        ("cuda (NVIDIA H200)", 2, "cuda (NVIDIA H200) x 2", 3),
        ("cpu (8 threads)", 2, "cpu", 4),
    ],
)
def test_ranks_share_threads_and_count_gpus(tmp_path, planned, ranks, device, threads):
    config = RunConfig(model=model_preset("tiny"), engine=EngineConfig(tensor_parallel=ranks))
    machine = dataclasses.replace(capture_environment("none", 1), threads=3)
    found = planned_environment(job(tmp_path, planned, config), machine)
    assert (found.device, found.threads) == (device, threads)

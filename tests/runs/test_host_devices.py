"""Two timed runs on one host never share a GPU, nor the CPU."""

from __future__ import annotations

import multiprocessing as mp
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import ConfigError, RunConfig
from harness.runs.host_devices import HostDevices, visible_gpus
from harness.runs.jobs import Job

GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


def job(device: str, tensor_parallel: int = 1) -> Job:
    kind = "simulated" if device == "simulated" else "torch"
    config = RunConfig()
    config = replace(config, executor=replace(config.executor, kind=kind))
    engine = replace(config.engine)
    object.__setattr__(engine, "tensor_parallel", tensor_parallel)
    object.__setattr__(config, "engine", engine)
    return Job(config, "id", "a run", "", Path("nowhere"), "", device=device)


def on_host(folder: Path, gpus: tuple[str, ...] = GPUS) -> HostDevices:
    return HostDevices(lambda: gpus, folder)


def gpus_of(lease) -> set[str]:
    return set(lease.environment["CUDA_VISIBLE_DEVICES"].split(","))


ONE = job("cuda (a GPU)")


def test_each_job_gets_a_gpu_of_its_own_until_there_is_none(tmp_path):
    leases = [on_host(tmp_path).lease(ONE) for _ in GPUS]
    assert set.union(*map(gpus_of, leases)) == set(GPUS)
    assert on_host(tmp_path).lease(ONE) is None
    leases[2].release()
    assert gpus_of(on_host(tmp_path).lease(ONE)) == {"GPU-c"}


def test_a_split_model_gets_as_many_or_none_and_holds_none_while_it_waits(tmp_path):
    first = on_host(tmp_path).lease(ONE)
    two = on_host(tmp_path).lease(job("cuda (a GPU)", 2))
    assert len(gpus_of(two)) == 2
    assert not gpus_of(two) & gpus_of(first)
    assert on_host(tmp_path).lease(job("cuda (a GPU)", 2)) is None
    last = on_host(tmp_path).lease(ONE)
    assert gpus_of(first) | gpus_of(two) | gpus_of(last) == set(GPUS)


def test_all_gpus_need_no_choice(tmp_path):
    assert on_host(tmp_path, ("GPU-a",)).lease(ONE).environment == {}
    assert on_host(tmp_path, GPUS[1:]).lease(job("cuda (a GPU)", 3)).environment == {}


def test_the_gpu_that_has_the_model_is_taken_again(tmp_path):
    devices = on_host(tmp_path)
    blocking = on_host(tmp_path).lease(ONE)
    first = devices.lease(ONE)
    first.release()
    blocking.release()
    assert gpus_of(devices.lease(ONE)) == gpus_of(first)


def test_more_gpus_than_there_are_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tensor_parallel=8 needs 8 GPUs, this process sees 4"):
        on_host(tmp_path).lease(job("cuda (a GPU)", 8))


def test_the_cpu_is_one_runs_at_a_time_and_simulated_runs_need_nothing(tmp_path):
    held = on_host(tmp_path).lease(job("cpu (2 threads)"))
    assert on_host(tmp_path).lease(job("cpu (2 threads)")) is None
    assert on_host(tmp_path).lease(job("simulated")) is not None
    assert on_host(tmp_path).lease(ONE) is not None
    held.release()
    assert on_host(tmp_path).lease(job("cpu (2 threads)")) is not None


def test_other_users_can_open_the_locks_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        on_host(tmp_path / "locks").lease(job("cpu"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "locks" / "cpu.lock").stat().st_mode) == 0o644


def _hold(folder: Path, connection) -> None:
    lease = on_host(folder).lease(job("cpu"))
    connection.send(lease is not None)
    connection.recv()


def test_a_process_that_is_killed_gives_its_device_back(tmp_path):
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_hold, args=(tmp_path, theirs))
    child.start()
    assert ours.recv()
    assert on_host(tmp_path).lease(job("cpu")) is None
    child.kill()
    child.join()
    assert on_host(tmp_path).lease(job("cpu")) is not None


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A host whose driver tells of GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(GPUS) + "\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, GPUS),
        ("2,0", ("GPU-c", "GPU-a")),
        ("GPU-b", ("GPU-b",)),
        ("MIG-x,MIG-y", ("MIG-x", "MIG-y")),
        ("", ()),
        ("-1", ()),
        ("1,-1,2", ("GPU-b",)),
    ],
)
def test_what_a_scheduler_has_chosen_is_chosen_from(driver, monkeypatch, chosen, expected):
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == expected


def test_ranks_that_torchrun_started_have_chosen_already(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    held = on_host(tmp_path, GPUS[1:2]).lease(ONE)
    assert on_host(tmp_path).lease(job("cuda (a GPU)", 4)) is None
    held.release()
    ranks = on_host(tmp_path).lease(job("cuda (a GPU)", 4))
    assert ranks.environment == {}
    assert gpus_of(on_host(tmp_path).lease(ONE)) == {"GPU-c"}

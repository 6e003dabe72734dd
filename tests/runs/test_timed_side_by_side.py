"""Timed runs of two commands on one machine take turns on the CPU, and have GPUs of their own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import AllocatorConfig, DeviceConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.measure.environment import capture_environment
from harness.runs.claims import Claims
from harness.runs.code_hash import CodeHashes
from harness.runs.host_devices import HostDevices
from harness.runs.job_queue import JobQueue
from harness.runs.jobs import Job, make_job
from harness.runs.store import StoredRun
from harness.runs.sweep import Drain


@pytest.mark.slow
def test_a_timed_run_waits_for_the_cpu_and_says_so(command, tmp_path, monkeypatch):
    monkeypatch.setenv("KVARENA_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr("harness.runs.sweep.LOOK_EVERY_S", 0.001)
    held = HostDevices()._lock("cpu")  # another command's
    asked = []
    lease = HostDevices.lease

    def count(self: HostDevices, job: Job):
        asked.append(job)
        if len(asked) == 3:
            os.close(held)
        return lease(self, job)

    monkeypatch.setattr(HostDevices, "lease", count)
    answer = command("executor=torch", "device=cpu", "workload.num_requests=2")
    assert answer.status == 0, answer.err
    assert answer.out.count("waiting for cpu (") == 1
    assert "another command's timed runs have it" in answer.out
    assert len(asked) == 3


NOTING = """
import os, time
from pathlib import Path
from allocators.paged import Paged


class Mine(Paged):
    name = "mine"

    def allocate(self, *arguments, **keywords):
        noted = Path(os.environ["CUDA_VISIBLE_DEVICES"] + ".seen")
        if "TELL" in os.environ and not noted.exists():
            noted.touch()
            deadline = time.monotonic() + 120
            while len(list(Path().glob("*.seen"))) < 2:
                assert time.monotonic() < deadline, "the other run is not under way"
                time.sleep(0.01)
        return super().allocate(*arguments, **keywords)
"""


@pytest.mark.slow
def test_two_jobs_at_once_see_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each run waits for the other to be under way; the GPUs are names alone, the model is on the
    CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("TELL", "1")
    Path("mine.py").write_text(NOTING)
    config = RunConfig(
        model=model_preset("tiny"),
        allocator=AllocatorConfig(name="./mine.py:Mine"),
        device=DeviceConfig(kind="cpu"),
    )
    config = replace(config, workload=replace(config.workload, num_requests=2))
    code = CodeHashes()
    jobs = [
        make_job(replace(config, seed=seed), "", tmp_path, "cuda (a GPU)", code) for seed in (0, 1)
    ]
    runs: list[StoredRun | None] = []
    with Claims() as claims:
        queue = JobQueue(claims)
        queue.add(jobs)
        devices = HostDevices(lambda: ("0", "1", "2"), tmp_path / "locks")
        told = lambda job, run: runs.append(run)  # noqa: E731
        Drain(queue, 2, devices, capture_environment("none", 1), told).run()
    assert [(run.status, run.error) for run in runs if run] == [("complete", "")] * 2
    assert sorted(path.name for path in Path().glob("*.seen")) == ["0.seen", "1.seen"]

"""A worker that cannot prove itself clean does no other run."""

from __future__ import annotations

import ast
import os
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import psutil
import pytest

from harness.config import AllocatorConfig, ConfigError, ExecutorConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.engine.executor import CaptureRefusedError
from harness.measure.environment import capture_environment
from harness.runs import sweep
from harness.runs.claims import Claims
from harness.runs.code_hash import CodeHashes
from harness.runs.host_devices import HostDevices, Lease
from harness.runs.job_queue import JobQueue
from harness.runs.jobs import Job, make_job
from harness.runs.worker import DeviceCache, JobResult, do_job, save_failure


class _Worker:
    """Answers at once; what a run leaves behind is told by its seed."""

    made: ClassVar[list[_Worker]] = []

    def __init__(self, environment: dict[str, str], *, checks_device: bool) -> None:
        self.connection, self._child = Pipe()
        self.environment = environment
        self.job: Job | None = None
        self.done: list[int] = []
        self.is_stopped = False
        _Worker.made.append(self)

    def submit(self, job: Job) -> None:
        assert not self.is_stopped
        self.job = job
        self.done.append(job.config.seed)
        is_clean = job.config.seed % 2 == 0 and not job.runs_own_code
        self._child.send(JobResult(job.run_id, "out_of_memory", "", 0.0, is_clean))

    def result(self) -> Any:
        self.job = None
        return self.connection.recv()

    def end(self) -> None:
        pass

    def stop(self) -> None:
        self.is_stopped = True


def test_the_next_run_gets_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "Worker", _Worker)
    _Worker.made.clear()
    hashes = CodeHashes()
    jobs = [
        make_job(RunConfig(model=model_preset("tiny"), seed=seed), "", tmp_path, "cpu", hashes)
        for seed in (0, 2, 1, 4)
    ]
    finished: list[int] = []
    sweep.run_jobs(
        jobs, capture_environment("none", 1), lambda job, _: finished.append(job.config.seed)
    )
    assert finished == [0, 2, 1, 4]
    assert [worker.done for worker in _Worker.made] == [[0, 2, 1], [4]]
    assert all(worker.is_stopped for worker in _Worker.made)


def test_a_run_of_own_code_is_the_last_of_its_process(
    tmp_path: Path, own_allocator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "Worker", _Worker)
    _Worker.made.clear()
    own, paged, simulated = f"{own_allocator}:Mine", "paged", ExecutorConfig(kind="simulated")
    hashes = CodeHashes()
    jobs = [
        make_job(
            RunConfig(
                model=model_preset("tiny"),
                seed=2 * seed,
                allocator=AllocatorConfig(name),
                executor=executor,
            ),
            "",
            tmp_path,
            "cpu",
            hashes,
        )
        for executor in (simulated, ExecutorConfig())
        for seed, name in enumerate((own, paged, paged, own, paged))
    ]
    monkeypatch.setattr(sweep, "usable_cores", lambda: 1)
    sweep.run_jobs(jobs, capture_environment("none", 1), lambda job, _: None)
    assert [worker.done for worker in _Worker.made] == [[2, 4, 8, 0], [6], [0], [2, 4, 6], [8]]
    own_run = next(job for job in jobs if job.runs_own_code and not job.is_timed)
    assert [do_job(job, DeviceCache()).is_clean for job in (own_run, jobs[1])] == [False, True]


def test_a_run_that_this_host_has_no_devices_for_may_be_done_elsewhere_meanwhile(
    tmp_path: Path,
) -> None:
    class _TooFew(HostDevices):
        def lease(self, job: Job) -> Lease | None:
            raise ConfigError("needs 2 GPUs")

    environment = capture_environment("none", 1)
    config = RunConfig(model=model_preset("tiny"))
    job = make_job(config, "", tmp_path, "cpu", CodeHashes())
    told: list[str] = []
    with Claims() as claims:
        queue = JobQueue(claims)
        queue.add([job])
        save_failure(job, "of the other host", 1.0, environment)
        sweep.Drain(
            queue,
            1,
            _TooFew(folder=tmp_path / "locks"),
            environment,
            lambda _, run: told.append("" if run is None else run.error),
        ).run()
    assert told == ["of the other host"]


@pytest.mark.parametrize(
    ("failure", "is_clean"),
    [(CaptureRefusedError("it waits for the device"), False), (ValueError("no such thing"), True)],
    ids=lambda value: str(value),
)
def test_a_refused_capture_ends_its_process(
    failure: Exception, is_clean: bool, tmp_path: Path
) -> None:
    class _Refusing(DeviceCache):
        def get(self, config: RunConfig) -> Any:
            raise failure

    config = RunConfig(model=model_preset("tiny"))
    result = do_job(make_job(config, "", tmp_path, "cpu", CodeHashes()), _Refusing())
    assert (result.status, result.is_clean) == ("failed", is_clean)


LEAKY = """
import gc, os, subprocess, sys, threading, time
from pathlib import Path
from allocators.paged import Paged


class Leaky(Paged):
    def __init__(self, pool):
        super().__init__(pool)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("children").open("a").write(f"{child.pid}\\n")
        threading.Timer(600, print).start()
        gc.disable()
        os.environ["LEAKED"] = "1"
        time.perf_counter = float
        Paged.check_integrity = lambda self: None


class Witness(Paged):
    def free(self, seq_id):
        super().free(seq_id)
        kinds = {type(each).__name__ for each in threading.enumerate()}
        found = "Timer" in kinds, gc.isenabled(), os.environ.get("LEAKED")
        found = *found, Paged.check_integrity.__name__
        Path("witness").write_text(repr((os.getpid(), time.perf_counter.__name__, *found)))
"""


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_own_code_does_to_its_process_meets_no_other_run(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    before = threading.active_count(), time.perf_counter, dict(os.environ)
    monkeypatch.setattr(sweep, "usable_cores", lambda: 1)
    answer = command("allocator=leaky.py:Leaky,leaky.py:Witness")
    assert answer.status == 0, answer
    pid, *state = ast.literal_eval((tmp_path / "witness").read_text())
    assert pid != os.getpid()
    assert state == ["perf_counter", False, True, None, "check_integrity"]
    children = (tmp_path / "children").read_text().split()
    assert len(children) == 2  # of the run, and of where its options were tried before
    assert not any(runs(int(child)) for child in children)
    assert before == (threading.active_count(), time.perf_counter, dict(os.environ))


ENDLESS = """
from allocators.paged import Paged


class Loops(Paged):
    def append(self, seq_id, num_tokens=1):
        while True:
            pass


class Full(Paged):
    def append(self, seq_id, num_tokens=1):
        raise OSError(28, "No space left on device")
"""


def test_own_code_that_loops_or_fails_is_a_failed_row_and_the_sweep_goes_on(
    tmp_path: Path, command: Any
) -> None:
    (tmp_path / "own.py").write_text(ENDLESS)
    assert command("allocator=own.py:Full,paged").status == 1
    rows = pd.read_csv("results/single/summary.csv").set_index("strategy")
    assert rows["status"].to_dict() == {"Full": "failed", "paged": "complete"}
    said = "append(0, 1) raised OSError: [Errno 28] No space left on device (own.py, line 13)"
    said = f"allocator Full: {said}"
    assert rows.loc["Full", "error"] == said
    assert command("allocator=own.py:Loops,paged", "timeout_s=2").status == 1
    rows = pd.read_csv("results/single/summary.csv").set_index("strategy")
    assert [*rows.index] == ["Loops", "paged"]
    said = "did not end within timeout_s=2: raise that if it was at work, or see whether Loops"
    assert rows.loc["Loops", "error"].startswith(said)

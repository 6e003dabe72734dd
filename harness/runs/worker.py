"""A child process that does runs, one after the other, and survives none of its own crashes.

A worker keeps its model warm between runs; each run has its own allocator, pool and executor,
and the worker checks before each that the last one left nothing behind. A run of code that is not
the project's is the last of its worker.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing as mp
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
from typing import NamedTuple

from harness.conversion import to_stored
from harness.engine.device.parallel.launched import LAST_WORDS_S, Launch
from harness.engine.executor import CaptureRefusedError, RankLostError
from harness.engine.process_end import how_it_ended, last_words
from harness.measure.environment import Environment, capture_environment
from harness.own_code import blame, file_of
from harness.runs.code_hash import OWN_CODE, own_specs
from harness.runs.device_cache import CheckedDevices, DeviceCache
from harness.runs.jobs import Job, check_unchanged
from harness.runs.live import LiveBoard
from harness.runs.one_run import environment_of, execute_run
from harness.runs.out_of_memory import OutOfMemoryError, is_out_of_memory
from harness.runs.planned_environment import planned_environment
from harness.runs.processes import (
    descendants,
    die_with_parent,
    kill,
    with_environment,
    without_ctrl_c,
)
from harness.runs.store import NotStoredError, RunRecord, RunStatus, RunStore


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a worker tells its parent; the rows themselves are on disk by then.

    status: complete, failed, out_of_memory, or "not stored" where not even the failure could be
    written. is_clean: the run left nothing on the device, and executed nothing but the project's
    code; a worker that cannot prove it must do no other run.
    """

    run_id: str
    status: str
    error: str
    wall_s: float
    is_clean: bool = True


class _Failure(NamedTuple):
    """leaves_clean: the process can do another run, as far as the failure itself goes."""

    status: RunStatus
    error: str
    leaves_clean: bool = True


class Worker:
    """The parent's handle of a child process. live: of the run that it does.

    environment: variables that the child has beside its parent's. checks_device: a run that was
    planned for another device than the child finds fails, for its numbers would be stored under
    that one's address.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, checks_device: bool = False
    ) -> None:
        context = mp.get_context("spawn")
        self.connection, child = context.Pipe()
        self.live = LiveBoard()
        self.environment = dict(environment or {})
        arguments = (child, self.live, checks_device)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        with without_ctrl_c(), with_environment(self.environment):
            self._process.start()
        child.close()
        self.job: Job | None = None

    def submit(self, job: Job) -> None:
        """Start `job`; `result` will answer."""
        self.job = job
        self.live.clear()
        try:
            self.connection.send(job)
        except OSError:
            return  # the child is gone: `result` sees that and says so

    def result(self) -> JobResult | None:
        """The finished job's result, or None if the child died over it."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.job = None
        return answer if isinstance(answer, JobResult) else None

    def how_it_ended(self, job: Job) -> str:
        """What a child is to be said to have died of, that is gone in the midst of `job`."""
        self._process.join(timeout=10)
        num_ranks = job.config.engine.tensor_parallel
        who = "the worker process" if num_ranks == 1 else f"rank 0 of {num_ranks}"
        said = last_words(self._process.pid) if self._process.pid else None
        return said or f"{who} {how_it_ended(self._process.exitcode)}"

    def end(self) -> None:
        """Tell the child to end, whatever it is doing; `stop` waits for that."""
        self._process.terminate()

    def stop(self) -> None:
        """End the child and what it has started, whatever they are doing."""
        self.connection.close()
        below = descendants(self._process.pid)
        self._process.terminate()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        kill(below)


def save_failure(
    job: Job,
    error: str,
    wall_s: float,
    environment: Environment,
    status: RunStatus = "failed",
) -> None:
    """Store a run that did not work, so that it is a row and not a hole. environment: of this
    machine; the device is the one that `job` was planned for."""
    RunStore(job.root).write(
        RunRecord(
            run_id=job.run_id,
            label=job.label,
            config=to_stored(job.config),
            environment=planned_environment(job, environment),
            status=status,
            error=error,
            wall_s=wall_s,
            sources=job.sources,
        )
    )


def do_job(job: Job, devices: DeviceCache, board: LiveBoard | None = None) -> JobResult:
    """Do a run in this process and store it, whatever became of it; then look at what it left.
    board: shows how far it is."""
    begin = perf_counter()
    status, error, is_clean = "complete", "", True
    try:
        failure = _try_job(job, devices, board)
        if failure is not None:
            status, error = failure.status, failure.error
            keep = status == "out_of_memory" and job.config.engine.tensor_parallel == 1
            is_clean = devices.recover(keep=keep) and failure.leaves_clean
            wall_s = perf_counter() - begin
            environment = capture_environment("none", 1)
            save_failure(job, error, wall_s, environment, failure.status)
        else:
            is_clean = devices.recover(keep=True)
    except NotStoredError as failed:
        status, error = "not stored", str(failed)
    gc.collect()
    is_clean = is_clean and not job.runs_own_code
    return JobResult(job.run_id, status, error, perf_counter() - begin, is_clean)


def _try_job(job: Job, devices: DeviceCache, board: LiveBoard | None) -> _Failure | None:
    """Do and store a run; what it died of, or None."""
    try:
        check_unchanged(job)
        devices.check(job)
        device = devices.get(job.config)
        environment = environment_of(device)
        store = RunStore(job.root)
        with store.scratch(job.run_id) as folder:
            record = execute_run(
                job.config, job.run_id, job.label, device, environment, folder, board
            )
            record = dataclasses.replace(record, sources=job.sources)
            store.write(record, replaces=job.is_redo)
    except NotStoredError:
        raise
    except Exception as failure:  # whatever a run dies of becomes a row
        if is_out_of_memory(failure):
            return _Failure("out_of_memory", _memory_message(failure))
        if isinstance(failure, RankLostError):
            return _Failure("failed", str(failure), leaves_clean=False)
        if not isinstance(failure, ValueError):
            traceback.print_exc(file=sys.stderr)
        is_refusal = isinstance(failure, CaptureRefusedError)
        return _Failure("failed", _said(failure, job), leaves_clean=not is_refusal)
    return None


def _said(failure: Exception, job: Job) -> str:
    """What a run died of, with the line of own code that it comes from."""
    said = _one_line(failure)
    raised_in = {frame.filename for frame in traceback.extract_tb(failure.__traceback__)}
    for folder, spec in own_specs(job.config).items():
        what = f"{OWN_CODE[folder].removesuffix('.name')}={spec}"
        if str(file_of(spec).resolve()) in raised_in and not said.startswith(what):
            return f"{what}: {blame(failure, spec)}"
    return said


def _work(connection: Connection, board: LiveBoard, checks_device: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    devices = CheckedDevices() if checks_device else DeviceCache()

    signal.signal(signal.SIGTERM, _end_with(devices))
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(do_job(job, devices, board))


def _end_with(devices: DeviceCache) -> Callable[..., None]:
    """What SIGTERM does to a worker. torchrun sends it to every process as soon as a rank is gone:
    there the run that fails of that is given the time to be stored."""

    def end(*_: object) -> None:
        devices.abandon()
        os._exit(128 + signal.SIGTERM)

    def end_soon(*_: object) -> None:
        threading.Timer(LAST_WORDS_S, end).start()

    return end if Launch.of() is None else end_soon


def _memory_message(error: BaseException) -> str:
    if isinstance(error, OutOfMemoryError):
        return str(error)
    return (
        f"out of memory before there was a pool ({_one_line(error)}): choose a smaller model, or "
        "lower engine.token_budget or engine.max_num_seqs"
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"

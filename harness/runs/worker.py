"""A child process that does runs, one after the other, and survives none of its own crashes.

A worker keeps its model warm between runs; each run has its own allocator, pool and executor,
and the worker checks before each that the last one left nothing behind.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing as mp
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from harness.config import RunConfig, to_mapping
from harness.engine.executor import CaptureRefusedError
from harness.measure.environment import Environment, capture_environment
from harness.runs.jobs import Job, check_unchanged
from harness.runs.live import LiveBoard
from harness.runs.one_run import environment_of, execute_run, simulated_device
from harness.runs.out_of_memory import OutOfMemoryError, is_out_of_memory
from harness.runs.store import NotStoredError, RunRecord, RunStatus, RunStore
from harness.runs.surroundings import MOST_BYTES_LEFT, Device


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a worker tells its parent; the rows themselves are on disk by then.

    status: complete, failed, out_of_memory, or "not stored" where not even the failure could be
    written. is_clean: the run left nothing on the device; a worker that cannot prove it must do
    no other run.
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
    """The parent's handle of a child process. live: of the run that it does."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self.connection, child = context.Pipe()
        self.live = LiveBoard()
        self._process = context.Process(target=_work, args=(child, self.live), daemon=True)
        with _without_ctrl_c():
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

    def exit_code(self) -> int | None:
        """Of a child that is gone."""
        self._process.join(timeout=10)
        return self._process.exitcode

    def end(self) -> None:
        """Tell the child to end, whatever it is doing; `stop` waits for that."""
        self._process.terminate()

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        self.connection.close()
        self._process.terminate()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def save_failure(
    job: Job,
    error: str,
    wall_s: float,
    environment: Environment,
    status: RunStatus = "failed",
) -> None:
    """Store a run that did not work, so that it is a row and not a hole."""
    RunStore(job.root).write(
        RunRecord(
            run_id=job.run_id,
            label=job.label,
            config=to_mapping(job.config),
            environment=environment,
            status=status,
            error=error,
            wall_s=wall_s,
        )
    )


def do_job(job: Job, devices: DeviceCache, board: LiveBoard | None = None) -> JobResult:
    """Do a run in this process and store it, whatever became of it; then look at what it left.
    board: shows how far it is."""
    begin = time.perf_counter()
    status, error, is_clean = "complete", "", True
    try:
        failure = _try_job(job, devices, board)
        if failure is not None:
            status, error = failure.status, failure.error
            is_clean = devices.recover(keep=status == "out_of_memory") and failure.leaves_clean
            wall_s = time.perf_counter() - begin
            environment = capture_environment("none", 1)
            save_failure(job, error, wall_s, environment, failure.status)
        else:
            is_clean = devices.recover(keep=True)
    except NotStoredError as failed:
        status, error = "not stored", str(failed)
    gc.collect()
    return JobResult(job.run_id, status, error, time.perf_counter() - begin, is_clean)


def _try_job(job: Job, devices: DeviceCache, board: LiveBoard | None) -> _Failure | None:
    """Do and store a run; what it died of, or None."""
    try:
        check_unchanged(job)
        device = devices.get(job.config)
        environment = environment_of(device)
        store = RunStore(job.root)
        with store.scratch(job.run_id) as folder:
            record = execute_run(
                job.config, job.run_id, job.label, device, environment, folder, board
            )
            store.write(record)
    except NotStoredError:
        raise
    except Exception as failure:  # whatever a run dies of becomes a row
        if is_out_of_memory(failure):
            return _Failure("out_of_memory", _memory_message(failure))
        if not isinstance(failure, ValueError):
            traceback.print_exc(file=sys.stderr)
        is_refusal = isinstance(failure, CaptureRefusedError)
        return _Failure("failed", _one_line(failure), leaves_clean=not is_refusal)
    return None


class DeviceCache:
    """The last device used: a worker stays warm for one model at a time."""

    def __init__(self) -> None:
        self._key: Any = None
        self._device: Device | None = None

    def get(self, config: RunConfig) -> Device:
        """The device for `config`, loading its model if it is another than the last run's."""
        parallel = config.engine.tensor_parallel
        key = (config.model, config.device, config.executor, parallel)
        if self._device is None or key != self._key:
            self.drop()
            self._device = self._make(config)
            self._key = key
            gc.collect()
            gc.freeze()  # a run's collections need not look at the model and what was imported
        return self._device

    def recover(self, keep: bool) -> bool:
        """After a run: whether nothing of it is left on the device. keep: stay warm if so; the
        model is dropped where it is not wanted or where dropping it may help."""
        device = self._device
        try:
            if keep and (device is None or device.is_clean()):
                return True
            memory = None if device is None else device.memory
            del device
            self.drop()
            if memory is None:
                return True
            memory.give_back()
            return memory.allocated_bytes() <= MOST_BYTES_LEFT
        except RuntimeError as failure:  # a device that failed does nothing more in this process
            print(f"the device cannot be used again: {failure}", file=sys.stderr)
            return False

    def drop(self) -> None:
        """Forget the model and give its memory back."""
        self._device = None
        self._key = None
        gc.unfreeze()
        gc.collect()

    def _make(self, config: RunConfig) -> Device:
        if config.executor.kind == "simulated":
            return simulated_device(config)
        from harness.runs.torch_device import TorchDevice

        return TorchDevice(config.model, config.device)


def _work(connection: Connection, board: LiveBoard) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    devices = DeviceCache()
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(do_job(job, devices, board))


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A child started here never sees Ctrl-C, not even while it imports: its parent ends it.

    The signal is held back, not ignored, so the parent gets it as soon as the child is there.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would let the signal through again if started below
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _die_with_parent() -> None:
    """On Linux the kernel ends this process when its parent goes, however it goes."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


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

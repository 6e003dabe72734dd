"""A sweep: every run that is not stored yet, timed ones alone, the others side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from harness.measure.environment import Environment
from harness.runs.estimate import usable_cores
from harness.runs.jobs import Job
from harness.runs.store import NotStoredError, RunStore, StoredRun
from harness.runs.worker import Worker, save_failure

OnFinished = Callable[[Job, StoredRun | None], Sequence[Job] | None]
"""Told of each finished job; answers with the jobs that follow from it, if any."""


def pending_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without a complete run in the store; failed ones are tried again."""
    pending = []
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is None or run.status != "complete":
            pending.append(job)
    return pending


def run_jobs(jobs: Sequence[Job], environment: Environment, on_finished: OnFinished) -> None:
    """Do all of `jobs`, each once, and the jobs that `on_finished` adds. A run that fails or kills
    its worker becomes a failed row.

    Simulated runs share the machine's cores; timed ones follow, one at a time, in the order
    given. Ending early (Ctrl-C, kill) loses only the runs then in flight. Raises NotStoredError
    as soon as a run cannot be written: more of them could not be either.
    """
    simulated = [job for job in jobs if not job.is_timed]
    timed = [job for job in jobs if job.is_timed]
    _drain(simulated, usable_cores(), environment, on_finished)
    _drain(timed, 1, environment, on_finished)


def _drain(
    jobs: Sequence[Job], most_workers: int, environment: Environment, on_finished: OnFinished
) -> None:
    queue = deque(jobs)
    workers: list[Worker] = []
    started: dict[str, float] = {}
    try:
        _give_out(queue, workers, most_workers, started)
        while busy := {worker.connection: worker for worker in workers if worker.job}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job = worker.job
                assert job is not None
                result = worker.result()
                if result is not None and result.status == "not stored":
                    raise NotStoredError(result.error)
                if result is None:
                    wall_s = time.perf_counter() - started[job.run_id]
                    error = f"the worker process ended with exit code {worker.exit_code()}"
                    save_failure(job, error, wall_s, environment)
                if result is None or not result.is_clean:  # the next run gets a new process
                    worker.stop()
                    workers.remove(worker)
                queue.extend(on_finished(job, RunStore(job.root).find(job.run_id)) or ())
                _give_out(queue, workers, most_workers, started)
    finally:
        for worker in workers:
            worker.stop()


def _give_out(
    queue: deque[Job], workers: list[Worker], most_workers: int, started: dict[str, float]
) -> None:
    """A job for each worker that has none; more workers while there are more jobs."""
    while queue:
        idle = next((worker for worker in workers if worker.job is None), None)
        if idle is None:
            if len(workers) == most_workers:
                return
            idle = Worker()
            workers.append(idle)
        job = queue.popleft()
        started[job.run_id] = time.perf_counter()
        idle.submit(job)

"""A sweep: every run that is not stored yet, timed ones alone, the others side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from harness.measure.environment import Environment
from harness.runs.estimate import usable_cores
from harness.runs.jobs import Job
from harness.runs.live import LiveBoard
from harness.runs.store import NotStoredError, RunStore, StoredRun
from harness.runs.worker import Worker, save_failure

OnFinished = Callable[[Job, StoredRun | None], Sequence[Job] | None]
"""Told of each finished job; answers with the jobs that follow from it, if any."""

OnStarted = Callable[[Job, LiveBoard], None]
"""Told of each job that a worker was given, and of where that shows how far it is."""


def pending_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without a complete run in the store; failed ones are tried again."""
    pending = []
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is None or run.status != "complete":
            pending.append(job)
    return pending


def run_jobs(
    jobs: Sequence[Job],
    environment: Environment,
    on_finished: OnFinished,
    on_started: OnStarted | None = None,
) -> None:
    """Do all of `jobs`, each once, and the jobs that `on_finished` adds. A run that fails or kills
    its worker becomes a failed row.

    Simulated runs share the machine's cores; timed ones follow, one at a time, in the order
    given. Ending early (Ctrl-C, kill) loses only the runs then in flight. Raises NotStoredError
    as soon as a run cannot be written: more of them could not be either.
    """
    simulated = [job for job in jobs if not job.is_timed]
    timed = [job for job in jobs if job.is_timed]
    _Drain(usable_cores(), environment, on_finished, on_started).run(simulated)
    _Drain(1, environment, on_finished, on_started).run(timed)


class _Drain:
    """Does jobs, so many at one time."""

    def __init__(
        self,
        most_workers: int,
        environment: Environment,
        on_finished: OnFinished,
        on_started: OnStarted | None,
    ) -> None:
        self._most_workers = most_workers
        self._environment = environment
        self._on_finished = on_finished
        self._on_started = on_started
        self._queue: deque[Job] = deque()
        self._workers: list[Worker] = []
        self._started_s: dict[str, float] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """All of `jobs` and what follows from them; no worker is left, however it ends."""
        self._queue.extend(jobs)
        try:
            self._give_out()
            while busy := {worker.connection: worker for worker in self._workers if worker.job}:
                for connection in wait(list(busy)):
                    self._take_in(busy[connection])  # type: ignore[index]
        finally:
            for worker in self._workers:
                worker.end()
            for worker in self._workers:
                worker.stop()

    def _take_in(self, worker: Worker) -> None:
        """The result of a worker that has one, or is gone."""
        job = worker.job
        assert job is not None
        result = worker.result()
        if result is not None and result.status == "not stored":
            raise NotStoredError(result.error)
        if result is None:
            wall_s = time.perf_counter() - self._started_s[job.run_id]
            error = f"the worker process ended with exit code {worker.exit_code()}"
            save_failure(job, error, wall_s, self._environment)
        if result is None or not result.is_clean:  # the next run gets a new process
            worker.stop()
            self._workers.remove(worker)
        self._queue.extend(self._on_finished(job, RunStore(job.root).find(job.run_id)) or ())
        self._give_out()

    def _give_out(self) -> None:
        """A job for each worker that has none; more workers while there are more jobs."""
        while self._queue:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is None:
                if len(self._workers) == self._most_workers:
                    return
                idle = Worker()
                self._workers.append(idle)
            job = self._queue.popleft()
            self._started_s[job.run_id] = time.perf_counter()
            idle.submit(job)
            if self._on_started is not None:
                self._on_started(job, idle.live)

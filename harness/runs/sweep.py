"""A sweep: every run that is not stored yet, timed ones alone, the others side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import NamedTuple

from harness.config import ConfigError
from harness.engine.device.parallel.launched import LAST_WORDS_S, Launch
from harness.measure.environment import Environment
from harness.runs.claims import Claims
from harness.runs.estimate import usable_cores
from harness.runs.half_written import remove_half_written
from harness.runs.host_devices import HostDevices, Lease
from harness.runs.job_queue import JobQueue
from harness.runs.jobs import Job, strategy_label
from harness.runs.live import LiveBoard
from harness.runs.store import NotStoredError, RunStore, StoredRun
from harness.runs.worker import Worker, save_failure

OnFinished = Callable[[Job, StoredRun | None], Sequence[Job] | None]
"""Told of each finished job; answers with the jobs that follow from it, if any."""

OnStarted = Callable[[Job, LiveBoard], None]
"""Told of each job that a worker was given, and of where that shows how far it is."""

OnWaiting = Callable[[Job], None]
"""Told of a job that others have under way, or that is to be timed on what they have in use, each
time it looks so."""

LOOK_EVERY_S = 0.5
"""How often one looks whether others have stored a run, or given a device back."""


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
    on_waiting: OnWaiting | None = None,
) -> None:
    """Do all of `jobs`, each once, and the jobs that `on_finished` adds. A run that fails or kills
    its worker becomes a failed row. What another command has under way is waited for, and its row
    taken.

    Simulated runs share the machine's cores; timed ones follow, one at a time, in the order
    given. Ending early (Ctrl-C, kill) loses only the runs then in flight. Raises NotStoredError
    as soon as a run cannot be written: more of them could not be either.
    """
    # own code costs a worker each, which those of the project's share: its runs come last
    simulated = sorted((j for j in jobs if not j.is_timed), key=lambda job: job.runs_own_code)
    timed = [job for job in jobs if job.is_timed]
    with Claims() as claims:
        for some, most_workers in ((simulated, usable_cores()), (timed, 1)):
            queue = JobQueue(claims)
            queue.add(some)
            Drain(
                queue,
                most_workers,
                HostDevices(),
                environment,
                on_finished,
                on_started,
                on_waiting,
            ).run()


class _Started(NamedTuple):
    """A job under way. begun_s: of `time.perf_counter`."""

    lease: Lease
    begun_s: float


class Drain:
    """Does the jobs of a queue, so many at one time, each on devices of its own."""

    def __init__(
        self,
        queue: JobQueue,
        most_workers: int,
        devices: HostDevices,
        environment: Environment,
        on_finished: OnFinished,
        on_started: OnStarted | None = None,
        on_waiting: OnWaiting | None = None,
        *,
        checks_devices: bool = False,
    ) -> None:
        self._queue = queue
        self._most_workers = most_workers
        self._devices = devices
        self._environment = environment
        self._on_finished = on_finished
        self._on_started = on_started
        self._on_waiting = on_waiting
        self._checks_devices = checks_devices
        self._workers: list[Worker] = []
        self._started: dict[str, _Started] = {}

    def run(self) -> None:
        """All of the queue's jobs and what follows from them; no worker is left, however it
        ends."""
        try:
            while True:
                self._tell_of_others()
                self._give_out()
                busy = {worker.connection: worker for worker in self._workers if worker.job}
                is_held_up = self._queue.is_waiting or self._queue.next is not None
                if busy:
                    left_s = max(0.0, min(map(self._left_s, busy.values())))
                    ready = wait(list(busy), min(left_s, LOOK_EVERY_S) if is_held_up else left_s)
                    for connection in ready:
                        self._take_in(busy[connection])  # type: ignore[index]
                    for worker in busy.values():
                        is_there = worker in self._workers and worker.job is not None
                        if is_there and self._left_s(worker) <= 0:
                            self._end_overdue(worker)
                elif is_held_up:
                    time.sleep(LOOK_EVERY_S)
                else:
                    return
        except KeyboardInterrupt:
            if Launch.of() is not None:
                self._let_lost_ranks_be_told()
            raise
        finally:
            for worker in self._workers:
                worker.end()
            for worker in self._workers:
                worker.stop()
            for started in self._started.values():
                started.lease.release()

    def _let_lost_ranks_be_told(self) -> None:
        """torchrun ends this process as soon as it sees that a rank is gone. The worker sees that,
        too, and has a row to store."""
        busy = [worker.connection for worker in self._workers if worker.job]
        wait(busy, LAST_WORDS_S)

    def _left_s(self, worker: Worker) -> float:
        """Until the run of a busy worker has taken as long as it may."""
        assert worker.job is not None
        taken_s = time.perf_counter() - self._started[worker.job.run_id].begun_s
        return worker.job.timeout_s - taken_s

    def _end_overdue(self, worker: Worker) -> None:
        job = worker.job
        assert job is not None
        worker.stop()
        error = (
            f"did not end within timeout_s={job.timeout_s:g}: raise that if it was at work, or see "
            f"whether {strategy_label(job.config.allocator)} loops or refuses for ever"
        )
        self._failed(worker, job, error)

    def _failed(self, worker: Worker, job: Job, error: str) -> None:
        """The row of a run whose worker is gone."""
        started = self._started.pop(job.run_id)
        save_failure(job, error, time.perf_counter() - started.begun_s, self._environment)
        remove_half_written(job.root)  # the rows up to there
        self._workers.remove(worker)
        started.lease.release()
        self._queue.release(job)
        self._tell(job)

    def _take_in(self, worker: Worker) -> None:
        """The result of a worker that has one, or is gone."""
        job = worker.job
        assert job is not None
        result = worker.result()
        if result is not None and result.status == "not stored":
            raise NotStoredError(result.error)
        if result is None:
            error = worker.how_it_ended(job)
            worker.stop()
            self._failed(worker, job, error)
            return
        started = self._started.pop(job.run_id)
        if not result.is_clean:  # the next run gets a new process
            worker.stop()
            self._workers.remove(worker)
        started.lease.release()
        self._queue.release(job)
        self._tell(job)

    def _tell(self, job: Job) -> None:
        self._queue.add(self._on_finished(job, RunStore(job.root).find(job.run_id)) or ())

    def _tell_of_others(self) -> None:
        for job in self._queue.look():
            self._tell(job)
        for job in self._queue.elsewhere:
            if self._on_waiting is not None:
                self._on_waiting(job)

    def _give_out(self) -> None:
        """Start jobs while there are any, and workers and devices for them."""
        while (job := self._queue.next) is not None and self._has_room():
            try:
                lease = self._devices.lease(job)
            except ConfigError as error:
                self._refuse(error)
                continue
            if lease is None:
                if self._on_waiting is not None:
                    self._on_waiting(job)
                return
            if self._queue.take() is None:
                lease.release()
                self._tell_of_others()
                continue
            self._start(job, lease)

    def _has_room(self) -> bool:
        return sum(worker.job is not None for worker in self._workers) < self._most_workers

    def _start(self, job: Job, lease: Lease) -> None:
        """On a worker that is there, where it has these devices, else on a new one."""
        self._started[job.run_id] = _Started(lease, time.perf_counter())
        idle = [worker for worker in self._workers if worker.job is None]
        chosen = next((w for w in idle if w.environment == lease.environment), None)
        if chosen is None:
            for worker in idle:  # its model would be kept beside another's
                worker.stop()
                self._workers.remove(worker)
            chosen = Worker(lease.environment, checks_device=self._checks_devices)
            self._workers.append(chosen)
        chosen.submit(job)
        if self._on_started is not None:
            self._on_started(job, chosen.live)

    def _refuse(self, error: ConfigError) -> None:
        """A run that this host has no devices for is a failed row."""
        job = self._queue.take()
        if job is None:
            self._tell_of_others()
            return
        save_failure(job, str(error), 0.0, self._environment)
        self._queue.release(job)
        self._tell(job)

"""Jobs to be done here, each by one process alone of all those that share a results folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from harness.runs.claims import Claims, is_claimed
from harness.runs.jobs import Job
from harness.runs.store import RunStore

Stamps = Mapping[str, int | None]
"""By run id, what `RunStore.stamp` said when the command began: a run whose stamp is another has
been done since, by whomever. A stored failure of an earlier command is no answer to this one."""


def stamps_of(jobs: Iterable[Job]) -> dict[str, int | None]:
    """What is stored of `jobs` now."""
    return {job.run_id: RunStore(job.root).stamp(job.run_id) for job in jobs}


def is_done_since(job: Job, stamps: Stamps) -> bool:
    """Whether a run was stored after `stamps` were taken."""
    store = RunStore(job.root)
    if store.stamp(job.run_id) == stamps[job.run_id]:
        return False
    return store.find(job.run_id) is not None


class JobQueue:
    """waits: whether the runs that others have under way are waited for, and done here where they
    are given up; else they are left to these others."""

    def __init__(self, claims: Claims, *, waits: bool = True) -> None:
        self._claims = claims
        self._waits = waits
        self._queue: deque[Job] = deque()
        self._elsewhere: list[Job] = []
        self._stored: list[Job] = []
        self._stamps: dict[str, int | None] = {}

    def add(self, jobs: Iterable[Job], stamps: Stamps | None = None) -> None:
        """More to be done. stamps: of when they were asked for, if not now."""
        jobs = list(jobs)
        self._stamps |= stamps_of(jobs) if stamps is None else stamps
        self._queue.extend(jobs)

    @property
    def next(self) -> Job | None:
        """The job whose turn it is, not yet claimed."""
        return self._queue[0] if self._queue else None

    @property
    def elsewhere(self) -> tuple[Job, ...]:
        """Jobs that others have under way and this queue waits for."""
        return tuple(self._elsewhere)

    @property
    def is_waiting(self) -> bool:
        """Whether others have runs under way that this queue waits for."""
        return bool(self._elsewhere)

    def take(self) -> Job | None:
        """Claim the job whose turn it is. None if another has it, or has done it meanwhile."""
        job = self._queue.popleft()
        if self._claims.take(job.root, job.run_id):
            if not is_done_since(job, self._stamps):
                return job
            self.release(job)
            self._stored.append(job)
        elif self._waits:
            self._elsewhere.append(job)
        return None

    def release(self, job: Job) -> None:
        """A job that was taken is stored."""
        self._claims.release(job.root, job.run_id)

    def look(self) -> list[Job]:
        """Jobs that others have done since the last time; what they gave up is to be done here."""
        for job in list(self._elsewhere):
            if not is_claimed(job.root, job.run_id):
                self._elsewhere.remove(job)
                (self._stored if is_done_since(job, self._stamps) else self._queue).append(job)
        stored, self._stored = self._stored, []
        return stored

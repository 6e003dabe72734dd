"""Timed repetitions that others disturbed are done once more, when all others are done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from statistics import median

from harness.measure.interference import DISTURBED_SHARE, is_disturbed
from harness.runs.jobs import Job
from harness.runs.store import RunStore, StoredRun

BUDGET = 0.25
"""Of the time that a sweep's timed runs took: how much may be spent on doing some again."""


class Redo:
    """Of one command, which does `pending` of `jobs`: what it is to do again.

    Those that an interrupted command left disturbed are among them; a command with nothing else to
    time does nothing again. The second run takes the first one's place, whatever it finds.
    """

    def __init__(self, jobs: Iterable[Job], pending: Iterable[Job]) -> None:
        self._timed = {job.run_id: job for job in jobs if job.is_timed}
        self._left = {job.run_id for job in pending if job.is_timed}
        self._is_due = bool(self._left)
        self._held: dict[str, tuple[Job, StoredRun]] = {}

    def holds(self, job: Job, run: StoredRun) -> bool:
        """Whether `run` may yet be done again, so that it is not to be reported so far."""
        self._held.pop(job.run_id, None)
        if job.is_redo or not self._is_due or not _is_disturbed(run):
            return False
        self._held[job.run_id] = job, run
        return True

    @property
    def held(self) -> list[tuple[Job, StoredRun]]:
        """Runs that were held and not done again so far."""
        return list(self._held.values())

    def follow(self, finished: Job, more: Sequence[Job] = ()) -> tuple[list[Job], str]:
        """The jobs to be done again now that `finished` is, and `more` are still to come: none
        until it is the last timed one, then as many as the time allows, the most disturbed first;
        and what there is to say of it."""
        timed = {job.run_id: job for job in more if job.is_timed}
        self._timed |= timed
        self._left |= timed.keys()
        self._left.discard(finished.run_id)
        if self._left or not self._is_due:
            return [], ""
        self._is_due = False
        found = {job_id: RunStore(job.root).find(job_id) for job_id, job in self._timed.items()}
        complete = {job_id: run for job_id, run in found.items() if run is not None and run.summary}
        if not complete:
            return [], ""
        # not their sum: the first run of a worker may have compiled kernels
        left_s = BUDGET * len(complete) * median(run.wall_s for run in complete.values())
        disturbed = {job_id: run for job_id, run in complete.items() if _is_disturbed(run)}
        chosen = set()
        for job_id, run in sorted(disturbed.items(), key=lambda pair: -_others_share(pair[1])):
            left_s -= run.wall_s
            if left_s < 0:
                break
            chosen.add(job_id)
        again = [
            dataclasses.replace(job, is_redo=True)
            for job_id, job in self._timed.items()
            if job_id in chosen
        ]
        return again, _words(len(disturbed), len(complete), len(again))


def _words(num_disturbed: int, num_timed: int, num_again: int) -> str:
    if not num_disturbed:
        return ""
    return (
        f"{num_disturbed} of {num_timed} timed runs were disturbed (others had more than "
        f"{100 * DISTURBED_SHARE:.0f} % of the cores): {num_again} are done again"
    )


def _is_disturbed(run: StoredRun) -> bool:
    return any(map(is_disturbed, run.summary))


def _others_share(run: StoredRun) -> float:
    return max(float(row["others_share"]) for row in run.summary)

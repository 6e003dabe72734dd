"""Tables of what is simulated, shown while the timed runs of a sweep are still to come."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from harness.runs.jobs import Job
from harness.runs.rows import collect_rows


class TableKey(NamedTuple):
    """What a table of the comparison is of."""

    part: str
    workload: str


class EarlyTables:
    """shown: tables that are on the screen, and need not be shown again at the end."""

    def __init__(
        self,
        jobs: Sequence[Job],
        pending: Sequence[Job],
        figures: Sequence[str],
        console: Console,
    ) -> None:
        self._jobs = [job for job in jobs if not job.is_timed]
        is_early = any(job.is_timed for job in pending)
        self._left = {job.run_id for job in pending if is_early and not job.is_timed}
        self._figures = figures
        self._console = console
        self.shown: set[TableKey] = set()

    def finished(self, job: Job) -> None:
        """Show the table that `job` is of, if that was the last run of it."""
        if job.run_id not in self._left:
            return
        self._left.discard(job.run_id)
        key = _key(job)
        own = [each for each in self._jobs if _key(each) == key]
        if any(each.run_id in self._left for each in own):
            return
        # experiments sits above harness and is loaded by name: nothing here depends on it
        show = importlib.import_module("experiments.present").show_tables
        if show(collect_rows(own), own, self._figures, self._console):
            self.shown.add(key)


def _key(job: Job) -> TableKey:
    return TableKey(job.part, job.config.workload.name)

"""Small simulated studies, run within the test's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tiny_study import TINY, Runner, Study, plan

from harness.runs.jobs import Job
from harness.runs.rows import collect_rows
from harness.runs.worker import DeviceCache, do_job


def _all(job: Job) -> bool:
    return True


@pytest.fixture(scope="session")
def run_tiny(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run a command line's jobs, tiny unless it says otherwise, without those that `keep` leaves
    out; the same ones only once. own: keys that have the experiment's own values."""
    done: dict[tuple[object, ...], Study] = {}

    def run(*arguments: str, keep: Callable[[Job], bool] = _all, own: Sequence[str] = ()) -> Study:
        if (*arguments, keep) not in done:
            folder = tmp_path_factory.mktemp("study")
            given = {argument.split("=", 1)[0] for argument in arguments} | set(own)
            defaults = [a for a in TINY if a.split("=", 1)[0] not in given]
            planned, figures = plan(folder, *defaults, *arguments)
            jobs = [job for job in planned if keep(job)]
            devices = DeviceCache()
            for job in jobs:
                do_job(job, devices)
            devices.drop()
            rows = collect_rows(jobs)
            done[*arguments, keep] = Study(rows, jobs, figures, jobs[0].root)
        return done[*arguments, keep]

    return run


@pytest.fixture(scope="session")
def compared(run_tiny: Runner) -> Study:
    """All strategies on a small pool."""
    return run_tiny("experiment=compare_allocators", "kv.pool_tokens=320")

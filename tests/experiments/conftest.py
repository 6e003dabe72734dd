"""Small simulated studies, run within the test's process."""

from __future__ import annotations

import pytest
from tiny_study import TINY, Runner, Study, plan

from harness.runs.rows import collect_rows
from harness.runs.worker import DeviceCache, do_job


@pytest.fixture(scope="session")
def run_tiny(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run a command line's jobs, tiny unless it says otherwise; the same one only once."""
    done: dict[tuple[str, ...], Study] = {}

    def run(*arguments: str) -> Study:
        if arguments not in done:
            folder = tmp_path_factory.mktemp("study")
            given = {argument.split("=", 1)[0] for argument in arguments}
            defaults = [a for a in TINY if a.split("=", 1)[0] not in given]
            jobs, figures = plan(folder, *defaults, *arguments)
            devices = DeviceCache()
            for job in jobs:
                do_job(job, devices)
            done[arguments] = Study(collect_rows(jobs), jobs, figures, jobs[0].root)
        return done[arguments]

    return run


@pytest.fixture(scope="session")
def compared(run_tiny: Runner) -> Study:
    """All strategies on a small pool."""
    return run_tiny("experiment=compare_allocators", "kv.pool_tokens=320")

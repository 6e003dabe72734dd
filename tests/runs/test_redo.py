"""Timed repetitions that others disturbed are done once more, and take the first ones' places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.config import RunConfig
from harness.conversion import to_mapping
from harness.engine.device.model_shape import model_preset
from harness.measure.environment import capture_environment
from harness.measure.metrics import METRIC_NAMES
from harness.runs import redo
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import Job, make_job
from harness.runs.redo import Redo
from harness.runs.store import RunRecord, RunStore


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    hashes = CodeHashes()
    config = RunConfig(model=model_preset("tiny"))
    configs = [replace(config, seed=seed) for seed in range(6)]
    return [make_job(each, "times", tmp_path, "cpu", hashes) for each in configs]


def store(job: Job, others_share: float, wall_s: float = 1.0) -> None:
    row: Mapping[str, object] = {**dict.fromkeys(METRIC_NAMES, 1.0), "others_share": others_share}
    record = RunRecord(
        job.run_id, job.label, to_mapping(job.config), capture_environment("cpu", 1), "complete",
        "", wall_s, (row,), *2 * [pd.DataFrame({"repetition": [0]})],
    )  # fmt: skip
    RunStore(job.root).write(record, replaces=job.is_redo)


def finish(followed: Redo, jobs: list[Job], shares: list[float]) -> tuple[list[int], str]:
    """Seeds of what follows from runs with these disturbances, all at the last one."""
    for job, share in zip(jobs, shares, strict=True):
        store(job, share)
        run = RunStore(job.root).find(job.run_id)
        assert run is not None
        assert followed.holds(job, run) == (share > 0.05)
        again, words = followed.follow(job)
        if job is not jobs[-1]:
            assert (again, words) == ([], "")
    assert all(job.is_redo for job in again)
    return [job.config.seed for job in again], words


def test_the_most_disturbed_are_done_again_at_the_end_as_far_as_time_allows(jobs, monkeypatch):
    monkeypatch.setattr(redo, "BUDGET", 0.4)  # of six seconds
    followed = Redo(jobs, jobs)
    again, words = finish(followed, jobs, [0.0, 0.3, 0.06, 0.9, 0.05, 0.0])
    assert again == [1, 3]
    assert words == (
        "3 of 6 timed runs were disturbed (others had more than 5 % of the cores): 2 are done again"
    )
    second = replace(jobs[3], is_redo=True)
    store(second, 0.5)
    run = RunStore(second.root).find(second.run_id)
    assert run is not None and run.summary[0]["others_share"] == 0.5  # in the first one's place
    assert not followed.holds(second, run)
    assert followed.follow(second) == ([], "")  # and not done a third time
    assert {job.config.seed for job, _ in followed.held} == {1, 2}


def test_a_resumed_sweep_does_again_what_the_interrupted_one_left_disturbed(jobs, monkeypatch):
    monkeypatch.setattr(redo, "BUDGET", 0.4)
    for job in jobs[:3]:
        store(job, 0.5)
    assert finish(Redo(jobs, jobs[3:]), jobs[3:], [0.0, 0.0, 0.0])[0] == [0, 1]
    assert Redo(jobs, []).follow(jobs[0]) == ([], "")  # nothing was timed


def test_a_complete_run_gives_way_to_no_other(jobs):
    store(jobs[0], 0.5)
    store(jobs[0], 0.0)
    run = RunStore(jobs[0].root).find(jobs[0].run_id)
    assert run is not None and run.summary[0]["others_share"] == 0.5

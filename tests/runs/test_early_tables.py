"""Tables of simulated parts are on the screen before the timed runs begin."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments import present
from harness.config import ExecutorConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.runs.code_hash import CodeHashes
from harness.runs.early_tables import EarlyTables
from harness.runs.jobs import Job, make_job


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Two simulated runs of each of two workloads, then a timed one."""
    base = RunConfig(model=model_preset("tiny"), executor=ExecutorConfig("simulated"))
    configs = [
        replace(base, seed=seed, workload=replace(base.workload, name=name))
        for name in ("chat", "code")
        for seed in range(2)
    ]
    configs.append(replace(base, executor=ExecutorConfig("torch")))
    hashes = CodeHashes()
    return [make_job(each, "waste", tmp_path, "cpu", hashes) for each in configs]


def test_each_table_is_shown_with_its_last_run(jobs, monkeypatch):
    shown: list[list[str]] = []

    def show(rows, own, figures, console) -> bool:
        shown.append([job.run_id for job in own])
        return True

    monkeypatch.setattr(present, "show_tables", show)
    early = EarlyTables(jobs, jobs[1:], (), Console(file=io.StringIO()))
    early.finished(jobs[2])
    assert shown == [] and early.shown == set()
    early.finished(jobs[1])  # the first one of its table was stored before
    assert shown == [[jobs[0].run_id, jobs[1].run_id]]
    early.finished(jobs[3])
    early.finished(jobs[4])
    assert early.shown == {("waste", "chat"), ("waste", "code")} and len(shown) == 2


def test_without_a_timed_run_to_come_all_is_shown_at_the_end(jobs):
    early = EarlyTables(jobs, jobs[:4], (), Console(file=io.StringIO()))
    for job in jobs:
        early.finished(job)
    assert not early.shown

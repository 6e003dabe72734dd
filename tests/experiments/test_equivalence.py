"""Runs that decided alike should take the same time; where they do not, a warning names them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from tiny_study import Runner

from experiments.checks import run_checks
from experiments.equivalence import alike_pairs, equivalence_lines
from harness.runs.jobs import Job

NOISE = np.array([0.0, 0.01, -0.01, 0.005, -0.005, 0.002])


class Timed:
    """Timed rows by hand of three strategies and two page sizes; equal digests but for one."""

    def __init__(self, run_tiny: Runner) -> None:
        study = run_tiny("allocator=paged,paged_cow,paged_prefix", "kv.page_size=8,16",
                         "repetitions=6")  # fmt: skip
        self.jobs: list[Job] = [
            dataclasses.replace(job, label=job.label.replace("simulated", "torch"))
            for job in study.jobs
        ]
        self.rows = study.rows.assign(executor="torch", schedule_digest="alike", duration_s=2.0)
        self.times("paged_cow", 16, 2.0 * (1 + NOISE))

    def times(self, strategy: str, page_size: int, seconds: np.ndarray) -> None:
        self.rows.loc[self.cell(strategy, page_size), "duration_s"] = seconds

    def cell(self, strategy: str, page_size: int) -> pd.Series:
        chosen: pd.Series = self.rows["strategy"].eq(strategy)
        return chosen & self.rows["page_size"].eq(page_size)


@pytest.fixture
def timed(run_tiny: Runner) -> Timed:
    return Timed(run_tiny)


def test_alike_runs_of_one_page_size_are_tested_and_pass(timed: Timed) -> None:
    pairs = alike_pairs(timed.rows, timed.jobs)
    assert len(pairs) == 4 and all(pair.is_equivalent for pair in pairs)
    assert {pair.ratio.n for pair in pairs} == {6}
    (line,) = equivalence_lines(timed.rows, timed.jobs)
    assert line == "4 pairs of cells decided alike and took the same time, within 5 %"


def test_those_that_differ_are_named_with_the_difference(timed: Timed) -> None:
    timed.times("paged_prefix", 16, 3.0 * (1 + NOISE))
    passed, warning = run_checks(timed.rows, timed.jobs).lines[-2:]
    assert passed.startswith("3 pairs of cells")
    assert warning.startswith(
        "WARNING: runs: paged · page 16 · sharegpt · torch and runs: paged_prefix · page 16 · "
        "sharegpt · torch: these runs decided alike and should take the same time; they differ by "
        "50.0 % (± "
    )
    assert warning.endswith("not shown to be within 5 %: the machine was disturbed")


def test_a_spread_that_shows_nothing_is_no_equivalence(timed: Timed) -> None:
    timed.times("paged_prefix", 16, 2.0 * (1 + 20 * NOISE))
    assert [pair.is_equivalent for pair in alike_pairs(timed.rows, timed.jobs)].count(False) == 1


def test_one_other_decision_or_too_few_pairs_leave_nothing_to_test(timed: Timed) -> None:
    first = timed.cell("paged", 16) & timed.rows["seed"].eq(0)
    timed.rows.loc[first, "schedule_digest"] = "another"
    assert len(alike_pairs(timed.rows, timed.jobs)) == 3
    assert alike_pairs(timed.rows[timed.rows["seed"] < 5], timed.jobs) == []
    assert alike_pairs(timed.rows.drop(columns="schedule_digest"), timed.jobs) == []
    assert alike_pairs(timed.rows.assign(schedule_digest=None), timed.jobs) == []

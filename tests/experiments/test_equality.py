"""A wrong token is found wherever it is planted; a near-tie is told apart from it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import Runner

from experiments.checks import describe_equality
from experiments.equality import MARGIN_LIMIT, check_tokens, compare_tokens
from harness.runs.jobs import Job


def requests(*chosen: list[int], margin: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repetition": 0,
            "request_id": range(len(chosen)),
            "status": "finished",
            "chosen_ids": chosen,
            "margins": [[margin] * len(ids) for ids in chosen],
        }
    )


def test_equal_tokens_have_no_difference() -> None:
    same = requests([1, 2, 3], [4])
    assert compare_tokens(same, same, forced=True) == (None, None)


def test_first_difference_is_named() -> None:
    first, large = compare_tokens(
        requests([1, 2, 3], [4, 5]), requests([1, 2, 3], [4, 9]), forced=True
    )
    assert first == large == (1, 1, 5, 9, 0.5)


def test_a_near_tie_is_no_failure() -> None:
    first, large = compare_tokens(
        requests([1, 2]), requests([1, 3], margin=MARGIN_LIMIT / 2), forced=True
    )
    assert first is not None and first.margin == 0.5 and large is not None
    tied = MARGIN_LIMIT / 2
    first, large = compare_tokens(
        requests([1, 2], margin=tied), requests([1, 3], margin=tied), forced=True
    )
    assert first is not None and large is None


def test_a_large_difference_behind_a_near_tie_is_found_under_forced_ids_only() -> None:
    expected = requests([1, 2, 3])
    found = requests([9, 2, 8])
    for frame in (expected, found):
        frame.at[0, "margins"] = [1e-5, 1.0, 1.0]
    _, large = compare_tokens(expected, found, forced=True)
    assert large is not None and large.position == 2
    first, large = compare_tokens(expected, found, forced=False)
    assert first is not None and first.position == 0 and large is None


def test_requests_that_one_run_refused_are_left_out() -> None:
    found = requests([7, 7], [4])
    found.loc[0, "status"] = "refused"
    assert compare_tokens(requests([1, 2], [4]), found, forced=True) == (None, None)


@pytest.fixture
def timed_jobs(run_tiny: Runner, tmp_path: Path) -> list[Job]:
    """Real runs of three strategies, in a store of the test's own."""
    study = run_tiny(
        "executor=torch", "device=cpu", "repetitions=1", "workload=sharegpt",
        "workload.num_requests=8", "workload.length_scale=0.04", "kv.pool_tokens=128",
        "allocator=contiguous,paged,paged_prefix",
    )  # fmt: skip
    root = tmp_path / "store"
    shutil.copytree(study.folder, root)
    return [dataclasses.replace(job, root=root) for job in study.jobs]


def plant(job: Job, margin: float) -> None:
    """Change the last token that the longest request chose."""
    path = job.root / job.run_id / "requests.parquet"
    frame = pd.read_parquet(path)
    row = int(frame["chosen_ids"].map(len).idxmax())
    ids, margins = frame.at[row, "chosen_ids"], frame.at[row, "margins"]
    frame.at[row, "chosen_ids"] = [*ids[:-1], ids[-1] + 1]
    frame.at[row, "margins"] = [*margins[:-1], margin]
    frame.to_parquet(path)


def margins_to(jobs: list[Job], margin: float) -> None:
    for job in jobs:
        path = job.root / job.run_id / "requests.parquet"
        frame = pd.read_parquet(path)
        frame["margins"] = frame["margins"].map(lambda values: values * 0 + margin)
        frame.to_parquet(path)


def test_real_runs_have_equal_tokens(timed_jobs: list[Job]) -> None:
    report = check_tokens(timed_jobs)
    assert report is not None
    assert report.settings == 3 and report.positions > 30
    assert not report.failures and not report.near_ties
    lines = describe_equality(report, 3).lines
    assert lines == (f"identical tokens under all 3 allocators ({report.positions} positions)",)


def test_a_planted_difference_fails(timed_jobs: list[Job]) -> None:
    plant(timed_jobs[2], margin=0.1)
    report = check_tokens(timed_jobs)
    assert report is not None and len(report.failures) == 1
    assert "paged_prefix" in report.failures[0] and "margin" in report.failures[0]
    assert not describe_equality(report, 3).lines


def test_a_planted_near_tie_passes(timed_jobs: list[Job]) -> None:
    margins_to(timed_jobs, 1e-5)
    plant(timed_jobs[2], margin=1e-5)
    report = check_tokens(timed_jobs)
    assert report is not None and not report.failures and len(report.near_ties) == 1
    (line,) = describe_equality(report, 3).lines
    assert "but for a position where two logits tie" in line and "1e-05" in line


def test_simulated_runs_have_no_tokens_to_compare(run_tiny: Runner) -> None:
    assert check_tokens(run_tiny("allocator=contiguous,paged").jobs) is None

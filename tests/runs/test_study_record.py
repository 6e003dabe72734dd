"""A study on disk: which runs answer which command."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.stored import available, find_study
from harness.compose import hydra_session, parse_command
from harness.config import ConfigError
from harness.runs.rows import collect_rows
from harness.runs.study import run_study
from harness.runs.study_record import read_studies

SMALL = (
    "model=tiny", "executor=simulated", "repetitions=2", "workload.num_requests=12",
    "workload.length_scale=0.05", "workload.max_len=128", "kv.pool_tokens=256",
    "tracking=none", "allocator=paged",
)  # fmt: skip


def run(folder: Path, *arguments: str) -> None:
    with hydra_session():
        command = parse_command([*SMALL, f"results_dir={folder}", *arguments])
        assert run_study(command, Console(quiet=True)) == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two commands, the first of which was repeated in between."""
    folder = tmp_path_factory.mktemp("results")
    run(folder, "kv.page_size=4,16")
    run(folder, "kv.page_size=4,16")
    run(folder, "kv.page_size=16")
    return folder


def test_a_repeated_command_is_one_study(results: Path) -> None:
    latest, earlier = read_studies(results / "single")
    assert [len(study.runs) for study in (latest, earlier)] == [1, 2]
    assert earlier.arguments[-1] == "kv.page_size=4,16"
    assert latest.runs[0] in earlier.runs


def test_found_again_are_the_rows_of_the_command(results: Path) -> None:
    latest, earlier = read_studies(results / "single")
    now = find_study("single", results)
    pd.testing.assert_frame_equal(now.rows, pd.read_parquet(results / "single/summary.parquet"))
    assert now.record == latest and now.missing == 0
    before = find_study(f"{results / 'single'}@{earlier.study_id[:6]}", Path("elsewhere"))
    assert list(before.rows["page_size"]) == [4, 4, 16, 16]
    assert [job.label for job in before.jobs] == [r.label for r in earlier.runs]
    pd.testing.assert_frame_equal(before.rows, collect_rows(before.jobs))


def test_one_run_is_found_by_the_beginning_of_its_id(results: Path) -> None:
    earlier = read_studies(results / "single")[1]
    one = find_study(f"single/{earlier.runs[0].run_id[:8]}", results)
    assert list(one.rows["page_size"]) == [4, 4]
    assert one.record.arguments == earlier.arguments
    assert len(one.run(one.jobs[0].run_id).frame("steps")) > 0


def test_a_run_that_is_not_there_yet_is_counted(results: Path, tmp_path: Path) -> None:
    study = read_studies(results / "single")[1]
    lacking = tmp_path / "single"
    (lacking / "studies").mkdir(parents=True)
    name = f"studies/{study.study_id}.json"
    (lacking / name).write_bytes((results / "single" / name).read_bytes())
    with pytest.raises(ConfigError, match="none of its 2 runs is stored yet"):
        find_study("single", tmp_path)
    kept = study.runs[1].run_id
    (lacking / kept).symlink_to(results / "single" / kept)
    found = find_study("single", tmp_path)
    assert found.missing == 1 and [job.run_id for job in found.jobs] == [kept]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("singel", "did you mean single"),
        ("single@zzz", "0 studies of that id; there are"),
        ("single/zzz", "0 stored runs of that id"),
    ],
)
def test_a_wrong_name_says_what_there_is(results: Path, name: str, says: str) -> None:
    assert available(results) == ("single",)
    with pytest.raises(ConfigError, match=says):
        find_study(name, results)

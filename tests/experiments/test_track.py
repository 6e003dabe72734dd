"""The command that logs a stored study afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_study import Runner

from experiments.commands import track
from harness.config import TrackingConfig
from harness.runs.study_record import RecordedRun, StudyRecord, write_study


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """What the upload is asked for; it answers as the last element of the list says."""
    calls: list[tuple[StudyRecord, Path, Sequence[str], TrackingConfig]] = []
    answers: list[bool] = []

    def upload(record, folder, paths, config, tell):
        tell("told")
        assert all(path.is_file() for path in paths)
        names = ["/".join(path.parts[-2:]) for path in paths]
        calls.append((record, folder, names, config))
        return answers[-1]

    monkeypatch.setattr(track, "upload_study", upload)
    return calls, answers


def test_a_stored_study_is_handed_over_with_tables_and_figures_of_its_own(
    run_tiny: Runner, asked, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run_tiny("experiment=memory_map", "workload.num_requests=6", "repetitions=1")
    runs = tuple(RecordedRun(job.run_id, job.part, job.label) for job in study.jobs)
    record = StudyRecord(
        "abcdef012345", "memory_map", "?", "quick", (), tuple(study.figures), "2026", runs
    )
    write_study(record, study.folder)
    later = dataclasses.replace(record, study_id="fedcba", runs=runs[:1], updated_at="2027")
    write_study(later, study.folder)
    calls, answers = asked
    name = f"{study.folder}@abcd"
    answers.append(True)
    assert track.main([name, "--project", "p", "--entity", "e", "--timeout-s", "9"]) == 0
    assert capsys.readouterr().out == "told\n"
    ((found, folder, paths, config),) = calls
    assert (found, folder) == (record, study.folder)
    expected = TrackingConfig("wandb", project="p", entity="e", timeout_s=9.0)
    assert config == expected
    assert "figures/memory_map.png" in paths
    tables = {path.split("/")[-1] for path in paths}
    assert {"summary.csv", "summary.parquet", "comparison.md", "comparison.csv"} <= tables
    answers.append(False)
    one = f"{study.folder}/{runs[0].run_id}"
    assert track.main([one, "--offline", "--step-files"]) == 1
    assert [run.run_id for run in calls[-1][0].runs] == [runs[0].run_id]
    assert calls[-1][3] == TrackingConfig("wandb", mode="offline", step_files=True)

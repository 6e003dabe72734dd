"""What trackers keep can be read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.compose import hydra_session, parse_command
from harness.config import RunConfig, TrackingConfig
from harness.conversion import to_mapping
from harness.runs.store import RunStore, StoredRun
from harness.runs.study import run_study
from harness.tracking.jsonl_tracker import JsonlTracker
from harness.tracking.tracker import NoTracker, make_tracker

ARGUMENTS = ("executor=simulated", "model=tiny", "workload.num_requests=6", "repetitions=2")


def sweep(folder: Path, *arguments: str) -> list[StoredRun]:
    with hydra_session():
        command = parse_command([*ARGUMENTS, f"results_dir={folder}", *arguments])
        assert run_study(command, Console(quiet=True)) == 0
    store = RunStore(folder / "single")
    found = [store.find(p.name) for p in sorted(store.root.glob("[0-9a-f]*")) if p.is_dir()]
    return [run for run in found if run is not None]


def test_jsonl_has_a_line_for_each_finished_run(tmp_path):
    runs = sweep(tmp_path, "kv.page_size=8,16")
    lines = (tmp_path / "single" / "runs.jsonl").read_text().splitlines()
    entries = {entry["run_id"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == {run.run_id for run in runs}
    assert len(lines) == 2
    for run in runs:
        entry = entries[run.run_id]
        assert entry["status"] == "complete"
        assert entry["page_size"] == run.config["kv"]["page_size"]
        assert [row["utilisation"] for row in entry["summary"]] == [
            row["utilisation"] for row in run.summary
        ]
        pd.Timestamp(entry["time"])


def test_jsonl_is_json_where_a_metric_is_not_a_number(tmp_path):
    tracker = make_tracker(TrackingConfig("jsonl"), tmp_path)
    tracker.log_run(stored_run(tmp_path, ttft_ms=float("nan")), "runs")
    tracker.close()

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["summary"][0]["ttft_ms"] is None


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"run_id": "first"}\n{"run_id": "sec')
    tracker = make_tracker(TrackingConfig("jsonl"), tmp_path)
    tracker.log_run(stored_run(tmp_path), "runs")
    tracker.close()
    assert [json.loads(line)["run_id"] for line in path.read_text().splitlines()] == [
        "first",
        "abc",
    ]


def ids(folder: Path) -> list[str]:
    return [json.loads(line)["run_id"] for line in (folder / "runs.jsonl").open()]


def test_a_kill_just_after_a_store_neither_loses_nor_doubles_a_line(tmp_path, monkeypatch):
    """Whether it came before the run was told of, or while its line was written."""
    command = "kv.page_size=8,16,32"
    with monkeypatch.context() as patch:
        patch.setattr(JsonlTracker, "log_run", lambda self, run, part: None)
        patch.setattr(JsonlTracker, "catch_up", lambda self, runs: None)
        runs = sweep(tmp_path, command)
    assert ids(tmp_path / "single") == []
    sweep(tmp_path, command)
    assert sorted(ids(tmp_path / "single")) == sorted(run.run_id for run in runs)
    path = tmp_path / "single" / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    sweep(tmp_path, command)
    sweep(tmp_path, command)
    assert sorted(ids(tmp_path / "single")) == sorted(run.run_id for run in runs)


def test_two_sweeps_that_tell_of_one_run_write_one_line(tmp_path):
    run = stored_run(tmp_path)
    one, other = (make_tracker(TrackingConfig("jsonl"), tmp_path) for _ in range(2))
    for tracker in (one, other, one):
        tracker.log_run(run, "runs")
    other.log_run(replace(run, wall_s=2.0), "runs")  # it was done again
    one.close()
    other.close()
    assert ids(tmp_path) == ["abc", "abc"]


def test_none_writes_nothing(tmp_path):
    tracker = make_tracker(TrackingConfig("none"), tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.log_run(stored_run(tmp_path), "runs")
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def stored_run(folder: Path, **metrics: float) -> StoredRun:
    """A finished run as the store would hand it out."""
    config = to_mapping(RunConfig())
    return StoredRun(
        folder / "abc",
        "abc",
        "a run",
        "complete",
        "",
        1.0,
        config,
        [{"utilisation": 0.5, **metrics}],
    )

"""What trackers keep can be read back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.config import TrackingConfig
from harness.measure.ledger import CLASSES
from harness.runs.store import RunStore, StoredRun
from harness.tracking.tracker import NoTracker, make_tracker

ARGUMENTS = ("executor=simulated", "model=tiny", "workload.num_requests=6", "repetitions=2")


@pytest.fixture
def wandb_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))


def sweep(folder: Path, *arguments: str) -> list[StoredRun]:
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-m", "harness", *ARGUMENTS, f"results_dir={folder}", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
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
    tracker = make_tracker(TrackingConfig("jsonl"), "single", tmp_path)
    tracker.log_run(stored_run(tmp_path, ttft_ms=float("nan")), "runs")
    tracker.close()

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["summary"][0]["ttft_ms"] is None


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"run_id": "first"}\n{"run_id": "sec')
    tracker = make_tracker(TrackingConfig("jsonl"), "single", tmp_path)
    tracker.log_run(stored_run(tmp_path), "runs")
    tracker.close()
    assert [json.loads(line)["run_id"] for line in path.read_text().splitlines()] == [
        "first",
        "abc",
    ]


def test_none_writes_nothing(tmp_path):
    tracker = make_tracker(TrackingConfig("none"), "single", tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.log_run(stored_run(tmp_path), "runs")
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_wandb_run_written_offline_reads_back(tmp_path, wandb_offline):
    (run,) = sweep(tmp_path, "tracking=wandb")
    (path,) = (tmp_path / "single").rglob("run-*.wandb")
    records = [json.loads(line) for line in inspect(path).splitlines() if line]
    assert run.run_id in path.name
    (header,) = [record["run"] for record in records if "run" in record][:1]
    assert header["run_group"] == "single"
    assert header["project"] == "kvarena"
    assert header["job_type"] == "runs"
    assert header["display_name"] == run.label
    config = header["config"]["update"]
    assert config["kv"] == run.config["kv"]
    assert config["allocator"] == run.config["allocator"]
    steps = run.frame("steps").query("repetition == 0")
    series = pd.DataFrame(record["history"]["item"] for record in records if "history" in record)
    assert series["step"].tolist() == steps["step"].tolist()
    for name in CLASSES:
        assert series[f"ledger/{name}"].tolist() == steps[name].tolist()
    summary: dict[str, object] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["utilisation"] == pytest.approx(
        sum(row["utilisation"] for row in run.summary) / 2
    )
    assert (summary["status"], summary["repetitions"]) == ("complete", 2)


def inspect(path: Path) -> str:
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent))
    assert wandb is not None
    return subprocess.run(
        [wandb, "leet", "inspect", "--json", str(path)], capture_output=True, text=True, check=True
    ).stdout


def stored_run(folder: Path, **metrics: float) -> StoredRun:
    """A finished run as the store would hand it out."""
    from harness.config import RunConfig, to_mapping

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

"""Whatever W&B does, a sweep ends, with its own exit status and without leaving processes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from harness.compose import hydra_session, parse_command
from harness.config import RunConfig, TrackingConfig
from harness.conversion import to_mapping
from harness.measure.environment import capture_environment
from harness.runs.store import RunRecord, RunStore
from harness.runs.study import run_study
from harness.runs.study_record import RecordedRun, StudyRecord
from harness.tracking import wandb_upload
from harness.tracking.wandb_records import (
    FOLDER,
    WrittenRun,
    not_uploaded,
    remember,
    remove_superseded,
    unwritten,
    wanted_runs,
)
from harness.tracking.wandb_tracker import WandbTracker
from harness.tracking.wandb_upload import upload_study

STARTS_A_SERVICE = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
pathlib.Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}")
"""

HANGS = f"{STARTS_A_SERVICE}time.sleep(600)"
CRASHES = f"{STARTS_A_SERVICE}time.sleep(0.5); os._exit(9)"
REFUSES = """
def Settings(**settings): return settings
def init(**settings): raise OSError("no space left for W&B")
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have `import wandb` run this source instead, in processes started from here."""
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))

    def install(source: str) -> None:
        (tmp_path / "wandb.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    return install


@pytest.fixture
def study(tmp_path: Path) -> tuple[StudyRecord, Path]:
    """A study of one run, which failed, in its folder."""
    folder = tmp_path / "single"
    environment = capture_environment("none", 1)
    config = to_mapping(RunConfig())
    RunStore(folder).write(RunRecord("abc", "a run", config, environment, "failed", "no", 1.0))
    runs = (RecordedRun("abc", "runs", "a run"),)
    return StudyRecord("12345", "single", "", "quick", (), (), "2026", runs), folder


def no_process_is_left(folder: Path) -> bool:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert len(pids) == 2
    return not any(map(psutil.pid_exists, pids))


def test_a_sweep_ends_well_when_wandb_hangs(fake_wandb, tmp_path):
    fake_wandb(HANGS)
    screen = io.StringIO()
    with hydra_session():
        command = parse_command(
            [
                "model=tiny", "executor=simulated", "workload.num_requests=4", "allocator=paged",
                f"results_dir={tmp_path}", "tracking=wandb", "tracking.timeout_s=5",
            ]
        )  # fmt: skip
        status = run_study(command, Console(file=screen, width=1000))
    said = screen.getvalue()
    assert status == 0
    assert "warning: W&B: of 2 runs, 2 not written: it was ended after 5 s (tracking.tim" in said
    assert f"python -m experiments track {tmp_path / 'single'}@" in said
    assert no_process_is_left(tmp_path)


def test_a_wandb_that_crashes_is_told_with_the_way_out(fake_wandb, study, tmp_path):
    fake_wandb(CRASHES)
    lines: list[str] = []
    assert not upload_study(*study, [], TrackingConfig("wandb"), lines.append)
    assert "2 not written: it ended with exit code 9. The results are not" in lines[-1]
    assert f"python -m experiments track {study[1]}@12345" in lines[-1]
    assert no_process_is_left(tmp_path)


def test_what_wandb_says_is_told(fake_wandb, study):
    fake_wandb(REFUSES)
    lines: list[str] = []
    assert not upload_study(*study, [], TrackingConfig("wandb", mode="offline"), lines.append)
    assert "2 not written: a run: OSError: no space left for W&B" in lines[-1]
    assert "Traceback" in (study[1] / "wandb" / "log.txt").read_text()


def test_a_full_disk_is_a_warning(study, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb_upload, "_run", full)
    lines: list[str] = []
    WandbTracker(TrackingConfig("wandb")).conclude(*study, [], lines.append)
    assert lines[-1] == "warning: W&B: nothing logged: [Errno 28] No space left on device"


def test_a_project_s_runs_are_not_another_s(study, tmp_path):
    record, folder = study
    ours, theirs = TrackingConfig("wandb", project="ours"), TrackingConfig("wandb", project="other")
    (wanted, aggregate) = wanted_runs(record, folder)
    written = {}
    for name, config in (("a", ours), ("b", theirs), ("c", ours)):
        path = folder / FOLDER / f"offline-run-{name}"
        path.mkdir(parents=True)
        (path / f"run-{wanted.wandb_id}.wandb").touch()
        written[name] = path
        remember(WrittenRun(wanted.wandb_id, wanted.digest, path, False), folder, config)
    assert unwritten([wanted, aggregate], folder, ours) == [aggregate]
    assert not_uploaded([wanted], folder, ours)[0].path == written["c"]
    (written["c"] / f"run-{wanted.wandb_id}.wandb.synced").touch()
    assert not_uploaded([wanted], folder, ours) == []
    remove_superseded(wanted.wandb_id, folder, ours)
    assert [path.exists() for path in written.values()] == [False, True, True]
    assert unwritten([wanted], folder, theirs) == []
    remove_superseded(wanted.wandb_id, folder, theirs)
    assert not written["b"].exists() and unwritten([wanted], folder, theirs) == [wanted]


def test_disabled_logs_nothing(study, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    lines: list[str] = []
    assert upload_study(*study, [], TrackingConfig("wandb"), lines.append)
    assert lines == ["W&B: WANDB_MODE=disabled, so nothing is logged"]
    assert not (study[1] / "wandb").exists()

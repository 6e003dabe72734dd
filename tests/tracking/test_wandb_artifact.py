"""What the results' artifact takes of runs' folders."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.config import TrackingConfig
from harness.measure.environment import capture_environment
from harness.runs.store import RunRecord, RunStore
from harness.runs.study_record import StudyRecord
from harness.tracking.wandb_content import _artifact


def test_whole_folders_with_the_code_in_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"repetition": [0]})
    store = RunStore(tmp_path)
    store.write(
        RunRecord(
            run_id="one",
            label="a run",
            config={},
            environment=capture_environment("none", 1),
            status="complete",
            error="",
            wall_s=1.0,
            summary=({"utilisation": 0.5},),
            steps=frame,
            requests=frame,
            sources={"allocator/mine.py": b"class Mine: ...\n", "allocator/a/b.py": b""},
        )
    )
    run = store.find("one")
    assert run is not None
    record = StudyRecord("id", "single", "", "quick", (), (), "", ())
    artifact = _artifact(record, tmp_path, [], [run], TrackingConfig(step_files=True))
    entries = set(artifact.manifest.entries)
    assert {"one/steps.parquet", "one/allocator/mine.py", "one/allocator/a/b.py"} <= entries
    assert not _artifact(record, tmp_path, [], [run], TrackingConfig()).manifest.entries

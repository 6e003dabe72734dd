"""One JSON line a finished run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from harness.runs.rows import stored_settings
from harness.runs.store import StoredRun, null_for_nan
from harness.runs.study_record import StudyRecord
from harness.tracking.tracker import Tell


class JsonlTracker:
    """Appends to a file that any tool can follow. A metric that is not a number is null."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("ab", buffering=0)  # one line is one write: sweeps may share a file

    def log_run(self, run: StoredRun, part: str) -> None:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run_id": run.run_id,
            "part": part,
            "status": run.status,
            "error": run.error,
            "wall_s": round(run.wall_s, 3),
            **stored_settings(run),
            "summary": [null_for_nan(row) for row in run.summary],
        }
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def conclude(
        self, record: StudyRecord, folder: Path, paths: Sequence[Path], tell: Tell
    ) -> None:
        return None


def _drop_torn_line(path: Path) -> None:
    """A full disk or a kill may have cut the last line off; the next would be glued to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)

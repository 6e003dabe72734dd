"""One JSON line a finished run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from harness.runs.rows import settings
from harness.runs.store import StoredRun


class JsonlTracker:
    """Appends to a file that any tool can follow; one line is one write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")

    def log_run(self, run: StoredRun, part: str) -> None:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run_id": run.run_id,
            "part": part,
            "status": run.status,
            "error": run.error,
            "wall_s": round(run.wall_s, 3),
            **settings(run.config),
            "summary": run.summary,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

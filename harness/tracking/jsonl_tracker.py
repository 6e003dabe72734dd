"""One JSON line a finished run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.runs.rows import stored_settings
from harness.runs.store import StoredRun, null_for_nan
from harness.runs.study_record import StudyRecord
from harness.tracking.tracker import Tell


class JsonlTracker:
    """Appends to a file that any tool can follow, and that several sweeps may share. A run has one
    line each time that it is stored, whoever tells of it and how often. A metric that is not a
    number is null."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._read_bytes = 0
        self._known: set[tuple[object, ...]] = set()

    def catch_up(self, runs: Iterable[tuple[StoredRun, str]]) -> None:
        for run, part in runs:
            self.log_run(run, part)

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
        with self._locked():
            self._read_others()
            if _key(line) not in self._known:
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def conclude(
        self, record: StudyRecord, folder: Path, paths: Sequence[Path], tell: Tell
    ) -> None:
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile, where the file system has locks."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read_others(self) -> None:
        """Lines that are new in the file. A full disk or a kill may have cut the last one off: it
        goes, or the next would be glued to it."""
        self._file.seek(self._read_bytes)
        whole, end, _ = self._file.read().rpartition(b"\n")
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that is not ours
                self._known.add(_key(json.loads(line)))
        self._read_bytes += len(whole) + len(end)
        self._file.truncate(self._read_bytes)


def _key(line: Mapping[str, Any]) -> tuple[object, ...]:
    """Tells the lines of a run's attempts apart."""
    return line["run_id"], line["part"], line["status"], line["wall_s"]

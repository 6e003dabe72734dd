"""tracking=wandb as the sweep sees it: nothing beside its runs, one bounded process after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.config import TrackingConfig
from harness.runs.store import StoredRun
from harness.runs.study_record import StudyRecord
from harness.tracking.tracker import Tell
from harness.tracking.wandb_upload import upload_study


class WandbTracker:
    """Logs a study to W&B when its runs are over: a process that compresses and uploads beside a
    timed run would skew it. What an interrupted sweep has stored is logged by the command that
    goes on with it."""

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config

    def catch_up(self, runs: Iterable[tuple[StoredRun, str]]) -> None:
        return None

    def log_run(self, run: StoredRun, part: str) -> None:
        return None

    def close(self) -> None:
        return None

    def conclude(
        self, record: StudyRecord, folder: Path, paths: Sequence[Path], tell: Tell
    ) -> None:
        try:
            upload_study(record, folder, paths, self._config, tell)
        except OSError as error:
            tell(f"warning: W&B: nothing logged: {error}")

"""Where finished runs are reported to, beside the results store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from harness.config import TrackingConfig
from harness.runs.store import StoredRun
from harness.runs.study_record import StudyRecord

Tell = Callable[[str], None]


class Tracker(Protocol):
    """Hears of each run once it is stored, and of the sweep once its tables are written."""

    def catch_up(self, runs: Iterable[tuple[StoredRun, str]]) -> None:
        """Runs that were stored before, each with its part: an earlier command may have been
        killed before it told of them."""

    def log_run(self, run: StoredRun, part: str) -> None:
        """A run is stored. A timed one may be next: takes no longer than a line in a file."""

    def close(self) -> None:
        """No run follows, perhaps because the sweep was interrupted."""

    def conclude(
        self, record: StudyRecord, folder: Path, paths: Sequence[Path], tell: Tell
    ) -> None:
        """All runs are done; `paths` are tables and figures of theirs. `tell` gets lines for the
        reader. Raises nothing of its own."""


class NoTracker:
    """Reports to nobody."""

    def catch_up(self, runs: Iterable[tuple[StoredRun, str]]) -> None:
        return None

    def log_run(self, run: StoredRun, part: str) -> None:
        return None

    def close(self) -> None:
        return None

    def conclude(
        self, record: StudyRecord, folder: Path, paths: Sequence[Path], tell: Tell
    ) -> None:
        return None


def make_tracker(config: TrackingConfig, folder: Path) -> Tracker:
    """The tracker of `config`; files go under `folder`, the experiment's."""
    if config.kind == "jsonl":
        from harness.tracking.jsonl_tracker import JsonlTracker

        return JsonlTracker(folder / "runs.jsonl")
    if config.kind == "wandb":
        from harness.tracking.wandb_tracker import WandbTracker

        return WandbTracker(config)
    return NoTracker()

"""Where finished runs are reported to, beside the results store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harness.config import TrackingConfig
from harness.runs.store import StoredRun


class Tracker(Protocol):
    """Hears of each run once it is stored, after its timed region."""

    def log_run(self, run: StoredRun, part: str) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    """Reports to nobody."""

    def log_run(self, run: StoredRun, part: str) -> None:
        return None

    def close(self) -> None:
        return None


def make_tracker(config: TrackingConfig, experiment: str, folder: Path) -> Tracker:
    """The tracker of `config`; files go under `folder`."""
    if config.kind == "jsonl":
        from harness.tracking.jsonl_tracker import JsonlTracker

        return JsonlTracker(folder / "runs.jsonl")
    if config.kind == "wandb":
        from harness.tracking.wandb_tracker import WandbTracker

        return WandbTracker(config, experiment, folder)
    return NoTracker()

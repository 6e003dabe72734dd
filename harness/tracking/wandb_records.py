"""Which W&B runs a study has, and which of them were written and uploaded already."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.config import TrackingConfig
from harness.runs.store import RunStore, StoredRun
from harness.runs.study_record import RecordedRun, StudyRecord
from harness.tracking.keys import AGGREGATE

Mode = Literal["online", "offline", "disabled"]

FOLDER = "wandb"
"""Beside the runs of an experiment; W&B names it."""


_MODES: Mapping[str, Mode] = {
    "online": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


class WantedRun(NamedTuple):
    """A W&B run that a study should have.

    wandb_id: of one attempt at one stored run in one study, so that neither two sweeps that share a
    stored run nor a failed run and its repetition merge. digest: of what it shows. run: None for
    the aggregate.
    """

    wandb_id: str
    label: str
    digest: str
    run: tuple[RecordedRun, StoredRun] | None


class WrittenRun(NamedTuple):
    """A W&B run that was written to `path`, the folder of its `.wandb` file.

    uploaded: by `upload_study`, whatever became of the file since.
    """

    wandb_id: str
    digest: str
    path: Path
    uploaded: bool

    @property
    def is_uploaded(self) -> bool:
        """Also by `wandb sync`, which says so by a file."""
        return self.uploaded or self._log.with_suffix(".wandb.synced").exists()

    @property
    def is_there(self) -> bool:
        return self._log.exists()

    @property
    def _log(self) -> Path:
        return self.path / f"run-{self.wandb_id}.wandb"


def declared_mode(config: TrackingConfig) -> Mode | None:
    """What `tracking.mode` says, or under auto WANDB_MODE; None where both leave it to whether one
    is logged in."""
    if config.mode != "auto":
        return config.mode
    return _MODES.get(os.environ.get("WANDB_MODE", ""))


def group_name(record: StudyRecord) -> str:
    """The sweep: what `python -m experiments track` takes, too."""
    return f"{record.experiment}@{record.study_id}"


def wanted_runs(record: StudyRecord, folder: Path) -> list[WantedRun]:
    """A W&B run for each stored run of the study, and the aggregate. folder: of its experiment."""
    store = RunStore(folder)
    wanted = []
    for recorded in record.runs:
        stored = store.find(recorded.run_id)
        if stored is not None:
            digest = _digest((stored.path / "status.json").read_bytes())
            name = f"{record.study_id}-{recorded.run_id}-{digest[:6]}"
            wanted.append(WantedRun(name, recorded.label, digest, (recorded, stored)))
    if wanted:
        content = _digest("\n".join(run.wandb_id for run in wanted).encode())
        name = f"{record.study_id}-{AGGREGATE}"
        wanted.append(WantedRun(name, AGGREGATE, content, None))
    return wanted


def written_runs(folder: Path, config: TrackingConfig) -> dict[str, WrittenRun]:
    """By id, the W&B runs of this project that were written whole, as they were written last."""
    return {
        entry["wandb_id"]: WrittenRun(
            entry["wandb_id"], entry["digest"], folder / entry["path"], entry["uploaded"]
        )
        for entry in _entries(folder)
        if _is_of(entry, config)
    }


def unwritten(wanted: Sequence[WantedRun], folder: Path, config: TrackingConfig) -> list[WantedRun]:
    """Those that are not written, show something else by now, or are gone without having been
    uploaded."""
    written = written_runs(folder, config)
    missing = []
    for run in wanted:
        found = written.get(run.wandb_id)
        if found is None or found.digest != run.digest or not (found.is_there or found.is_uploaded):
            missing.append(run)
    return missing


def not_uploaded(
    wanted: Sequence[WantedRun], folder: Path, config: TrackingConfig
) -> list[WrittenRun]:
    """Those of `wanted` that are written whole, and on this disk only."""
    written = written_runs(folder, config)
    found = [written[run.wandb_id] for run in wanted if run.wandb_id in written]
    return [run for run in found if run.is_there and not run.is_uploaded]


def remember(run: WrittenRun, folder: Path, config: TrackingConfig) -> None:
    """`run` is written whole, below `folder`, or uploaded."""
    entry = {
        "wandb_id": run.wandb_id,
        "digest": run.digest,
        "entity": config.entity,
        "project": config.project,
        "path": str(run.path.relative_to(folder)),
        "uploaded": run.uploaded,
    }
    with _list(folder).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def remove_superseded(wandb_id: str, folder: Path, config: TrackingConfig) -> None:
    """Delete what was written under this id and not uploaded: cut off, or of an earlier state.
    What is for another project stays."""
    entries = _entries(folder)
    others = {folder / entry["path"] for entry in entries if not _is_of(entry, config)}
    for log in (folder / FOLDER).glob(f"offline-run-*/run-{wandb_id}.wandb"):
        if not log.with_suffix(".wandb.synced").exists() and log.parent not in others:
            shutil.rmtree(log.parent, ignore_errors=True)


def _list(folder: Path) -> Path:
    return folder / FOLDER / "written.jsonl"


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = _list(folder).read_text().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut off by a full disk or a kill: written again
            entries.append(json.loads(line))
    return entries


def _is_of(entry: Mapping[str, Any], config: TrackingConfig) -> bool:
    return (entry["entity"], entry["project"]) == (config.entity, config.project)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

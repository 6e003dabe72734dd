"""Finished runs on disk: a run is there whole, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.measure.environment import Environment

RunStatus = Literal["complete", "failed"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a run leaves. summary: one mapping of metric to value for each repetition."""

    run_id: str
    label: str
    config: Mapping[str, Any]
    environment: Environment
    status: RunStatus
    error: str
    wall_s: float
    summary: tuple[Mapping[str, Any], ...] = ()
    steps: pd.DataFrame | None = None
    requests: pd.DataFrame | None = None
    memory_map: pd.DataFrame | None = None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as found on disk; frames are read on demand."""

    path: Path
    run_id: str
    label: str
    status: RunStatus
    error: str
    wall_s: float
    config: dict[str, Any]
    summary: list[dict[str, Any]]

    def frame(self, name: Literal["steps", "requests", "memory_map"]) -> pd.DataFrame:
        """The rows of one kind, with a column `repetition`."""
        return pd.read_parquet(self.path / f"{name}.parquet")


def make_run_id(config: Mapping[str, Any], code: str, device: str) -> str:
    """Address of a run: the same config, code and device give the same one."""
    text = json.dumps([config, code, device], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunStore:
    """The runs of one experiment: `root/RUN_ID/` with config, environment, status and rows."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, run_id: str) -> StoredRun | None:
        """The run of this id if it was ever written whole, complete or failed."""
        path = self.root / run_id
        try:
            status = json.loads((path / "status.json").read_text())
            config = json.loads((path / "config.json").read_text())
            summary = json.loads((path / "summary.json").read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return StoredRun(
            path,
            run_id,
            status["label"],
            status["status"],
            status["error"],
            status["wall_s"],
            config,
            [_nan_for_null(row) for row in summary],
        )

    def write(self, record: RunRecord) -> Path:
        """Write a run beside its place and move it there in one rename.

        A full disk or a kill leaves at most a folder named `.RUN_ID.partial`, which nothing
        reads and the next write of the same run replaces. An earlier failed run gives way.
        """
        target = self.root / record.run_id
        partial = self.root / f".{record.run_id}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._write_files(partial, record)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                error.errno,
                f"run {record.run_id} was not saved ({error.strerror}): free space under "
                f"{self.root.parent} or choose another results_dir, then repeat the command",
            ) from error
        return target

    def _write_files(self, folder: Path, record: RunRecord) -> None:
        for name in ("steps", "requests", "memory_map"):
            frame = getattr(record, name)
            if frame is not None:
                frame.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
        _write_json(folder / "config.json", record.config)
        _write_json(folder / "environment.json", dataclasses.asdict(record.environment))
        _write_json(folder / "summary.json", [_null_for_nan(row) for row in record.summary])
        _write_json(
            folder / "status.json",
            {
                "label": record.label,
                "status": record.status,
                "error": record.error,
                "wall_s": record.wall_s,
            },
        )


def _write_json(path: Path, value: object) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _null_for_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _nan_for_null(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in row.items()}

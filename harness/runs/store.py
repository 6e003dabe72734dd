"""Finished runs on disk: a run is there whole, or not at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from harness.config import ConfigError
from harness.measure.environment import Environment
from harness.measure.record_files import RecordsNotWrittenError
from harness.runs.claims import remove_abandoned
from harness.runs.half_written import partial_path, remove_half_written
from harness.runs.stored_text import read_json

RunStatus = Literal["complete", "failed", "out_of_memory"]

_FRAMES = ("steps", "requests", "replicas", "memory_map", "step_work", "outcome_log")
_NEEDED = ("steps", "requests")


class NotStoredError(OSError):
    """A run could not be written. The message is one line and names the way out."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a run leaves. summary: one mapping of metric to value for each repetition.
    steps, requests: rows, or the file that holds them, which the store takes to itself. sources:
    of an allocator or a router of one's own, by path within the run's folder."""

    run_id: str
    label: str
    config: Mapping[str, Any]
    environment: Environment
    status: RunStatus
    error: str
    wall_s: float
    summary: tuple[Mapping[str, Any], ...] = ()
    steps: pd.DataFrame | Path | None = None
    requests: pd.DataFrame | Path | None = None
    replicas: pd.DataFrame | None = None
    memory_map: pd.DataFrame | None = None
    step_work: pd.DataFrame | None = None
    outcome_log: pd.DataFrame | None = None
    sources: Mapping[str, bytes] = field(default_factory=dict)


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

    def frame(
        self,
        name: Literal["steps", "requests", "replicas", "memory_map", "outcome_log"],
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The rows of one kind, with a column `repetition`; requests by `request_id`, steps with
        their work where it was recorded. columns: to be read alone. Raises ConfigError for a file
        that is damaged."""
        frame = read_frame(self.path / f"{name}.parquet", columns)
        work = self.path / "step_work.parquet"
        if name == "steps" and columns is None and work.is_file():
            frame = frame.join(read_frame(work).drop(columns="repetition"))
        if "request_id" in frame:
            frame = frame.sort_values(["repetition", "request_id"], ignore_index=True)
        return frame

    def first_steps(self) -> pd.DataFrame:
        """Steps that follow one another from the start: those of the first repetition, and in a
        fleet of the first replica alone."""
        steps = self.frame("steps")
        is_first = steps["repetition"] == steps["repetition"].min()
        if "replica" in steps:  # a run stored by an older version has none
            is_first &= steps["replica"] == 0
        first: pd.DataFrame = steps[is_first]
        return first


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A stored table. Raises ConfigError for a file that is none, or that lacks a column."""
    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{path}: cannot be read ({said}): delete the folder {path.parent} and repeat its "
            "command"
        ) from error


def make_run_id(config: Mapping[str, Any], code: str, device: str) -> str:
    """Address of a run: the same config, code and device give the same one."""
    text = json.dumps([config, code, device], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunStore:
    """The runs of one experiment: `root/RUN_ID/` with config, environment, status and rows."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, run_id: str) -> StoredRun | None:
        """The run of this id if it was ever written whole, whatever its status.

        A folder that lacks a file or holds one that is damaged is no run: it is done again.
        """
        found = self._read(run_id)
        return found if isinstance(found, StoredRun) else None

    def damage(self, run_id: str) -> str:
        """What keeps a run that was written from being found, in words; empty where nothing
        does."""
        found = self._read(run_id)
        return found if isinstance(found, str) and (self.root / run_id).is_dir() else ""

    def _read(self, run_id: str) -> StoredRun | str:
        """A run, or what is wrong with it. status.json is written last and has the size of each
        other file, so that a damaged one is found without being read."""
        path = self.root / run_id
        try:
            status = read_json(path / "status.json")
            for name, size in status["files"].items():
                info = (path / name).stat()
                if info.st_size != size or not stat.S_ISREG(info.st_mode):
                    return f"{name} has {info.st_size:,} bytes, not {size:,}"
                if name.endswith(".parquet") and not _is_parquet(path / name):
                    return f"{name} is no Parquet file"
            read_json(path / "environment.json")["device"]
            run = StoredRun(
                path,
                run_id,
                status["label"],
                status["status"],
                status["error"],
                status["wall_s"],
                read_json(path / "config.json"),
                [_nan_for_null(row) for row in read_json(path / "summary.json")],
            )
        except OSError as error:
            return f"{Path(error.filename or path).name}: {error.strerror}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"a file is not as it was written ({type(error).__name__}: {error})"
        lacking = [name for name in _NEEDED if f"{name}.parquet" not in status["files"]]
        if run.status == "complete" and (lacking or not run.summary):
            return f"it lacks {', '.join(lacking) or 'its summary'}"
        return run

    def write(self, record: RunRecord, *, replaces: bool = False) -> Path:
        """Write a run beside its place and move it there in one rename.

        A full disk or a kill leaves at most a folder named `.RUN_ID.HOST.PID.partial`, which
        nothing reads. An earlier run that is not complete gives way; a complete one stays, as
        when another process did the same run meanwhile, unless this one `replaces` it. Raises
        NotStoredError where it cannot be written.
        """
        target = self.root / record.run_id
        partial = partial_path(target)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write_files(partial, record)
            self._move(partial, target, replaces)
        except OSError as error:
            raise self._not_stored(record.run_id, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    @contextmanager
    def scratch(self, run_id: str) -> Iterator[Path]:
        """A folder for what a run writes while it goes on; gone afterwards. Raises
        NotStoredError where none can be made, or its records cannot be written."""
        folder = partial_path(self.root / f"{run_id}.rows")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise self._not_stored(run_id, error) from error
        try:
            yield folder
        except RecordsNotWrittenError as error:
            raise self._not_stored(run_id, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _not_stored(self, run_id: str, error: OSError) -> NotStoredError:
        if isinstance(error, NotStoredError):
            return error
        return NotStoredError(
            f"run {run_id} was not saved ({error.strerror or error}): free space under "
            f"{self.root.parent} or choose another results_dir, then repeat the command; "
            "what is stored already is kept"
        )

    def stamp(self, run_id: str) -> int | None:
        """Changes with each time that the run is written, however it ended; None if it never was.
        Cheaper than to find it."""
        try:
            return (self.root / run_id / "status.json").stat().st_mtime_ns
        except OSError:
            return None

    def remove_partial(self) -> None:
        """Delete what writers that are gone left half-written, and their claims; living ones, here
        or on other machines, are let be."""
        remove_half_written(self.root)
        remove_abandoned(self.root)

    def _move(self, partial: Path, target: Path, replaces: bool) -> None:
        for _ in range(3):
            earlier = self.find(target.name)
            if earlier is not None and earlier.status == "complete" and not replaces:
                return
            if target.exists():
                aside = partial_path(target.with_name(f"{target.name}.old"))
                target.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            try:
                partial.rename(target)
                return
            except OSError as error:  # another process put the same run there just now
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        raise OSError(errno.EEXIST, f"{target} is being written by others")

    def _write_files(self, folder: Path, record: RunRecord) -> None:
        for name in _FRAMES:
            frame = getattr(record, name)
            if isinstance(frame, Path):
                frame.rename(folder / f"{name}.parquet")
            elif frame is not None:
                frame.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
        _write_json(folder / "config.json", record.config)
        _write_json(folder / "environment.json", dataclasses.asdict(record.environment))
        _write_json(folder / "summary.json", [null_for_nan(row) for row in record.summary])
        for name, source in record.sources.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        status = {
            "label": record.label,
            "status": record.status,
            "error": record.error,
            "wall_s": record.wall_s,
            "files": {p.relative_to(folder).as_posix(): p.stat().st_size for p in written},
        }
        _write_json(folder / "status.json", status)
        for path in folder.rglob("*"):
            _sync(path)


def _is_parquet(path: Path) -> bool:
    """Whether it begins and ends as one: what lies between is read when it is asked for."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-4, os.SEEK_END)
        return head == file.read(4) == b"PAR1"


def _sync(path: Path) -> None:
    """On disk, or an error now: some file systems find out late that they are full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: object) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1, default=str)
        file.write("\n")


def null_for_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON can hold it: it has no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _nan_for_null(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in row.items()}

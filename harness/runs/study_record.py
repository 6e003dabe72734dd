"""What a command asked for and which runs answer it, on disk beside the runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config import ConfigError, RunConfig
from harness.conversion import from_mapping
from harness.runs.bisection import Search
from harness.runs.half_written import write_whole
from harness.runs.jobs import Job, jobs_told_apart
from harness.runs.store import RunStore, StoredRun
from harness.runs.stored_text import read_json

FOLDER = "studies"

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run of a study, stored or still to be done. search: that it is a probe of."""

    run_id: str
    part: str
    label: str
    search: Search | None = None


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A command and its runs, in the order of their tables.

    study_id: the same for the same command on the same code and device. arguments: as typed after
    `python -m harness`. figures: modules of `experiments.figures`. updated_at: UTC, ISO 8601.
    """

    study_id: str
    experiment: str
    question: str
    preset: str
    arguments: tuple[str, ...]
    figures: tuple[str, ...]
    updated_at: str
    runs: tuple[RecordedRun, ...]


def study_id(arguments: Sequence[str], jobs: Sequence[Job]) -> str:
    """Address of a study: its command, and the runs it was planned with."""
    text = json.dumps([sorted(arguments), sorted(job.run_id for job in jobs)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_study(record: StudyRecord, folder: Path) -> Path:
    """`folder/studies/STUDY_ID.json`, replaced in one rename. folder: of the experiment."""
    path = folder / FOLDER / f"{record.study_id}.json"
    write_whole(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    return path


def read_studies(folder: Path) -> list[StudyRecord]:
    """The studies of an experiment's folder, latest first."""
    records = [_read(path) for path in (folder / FOLDER).glob("*.json")]
    return sorted(records, key=lambda record: record.updated_at, reverse=True)


def stored_jobs(record: StudyRecord, folder: Path) -> list[Job]:
    """The runs of a study that are stored, as jobs. Raises ConfigError for a run whose config this
    version does not read."""
    store = RunStore(folder)
    found = [(run, store.find(run.run_id)) for run in record.runs]
    return jobs_told_apart([stored_job(run, stored) for run, stored in found if stored is not None])


def stored_job(run: RecordedRun, stored: StoredRun) -> Job:
    """A run of a study as the job that it was. Raises ConfigError as `stored_jobs` does."""
    try:
        config = from_mapping(RunConfig, stored.config)
    except ConfigError as error:
        raise ConfigError(
            f"{stored.path}: stored by another version of kvarena ({error}): repeat its command"
        ) from error
    return Job(config, run.run_id, run.label, run.part, stored.path.parent, "", run.search)


def now() -> str:
    """UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path) -> StudyRecord:
    try:
        values = read_json(path)
        for name in ("arguments", "figures"):
            values[name] = tuple(values[name])
        values["runs"] = tuple(_read_run(run) for run in values["runs"])
        record = StudyRecord(**values)
        for name in (record.experiment, record.study_id, *(run.run_id for run in record.runs)):
            if not _NAME.fullmatch(name):  # it becomes part of paths
                raise ValueError(f"{name!r} is no name")
        return record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a study ({error}): delete it, or repeat its command"
        ) from error


def _read_run(values: dict[str, Any]) -> RecordedRun:
    search = values.pop("search")
    return RecordedRun(**values, search=None if search is None else Search(**search))

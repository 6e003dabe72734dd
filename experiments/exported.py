"""A study without the folders of its runs: what `python -m experiments export` wrote, read again.

Settings and environments of all runs lie in one file each, as what all runs share and what each
has of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import ConfigError, RunConfig
from harness.conversion import from_mapping
from harness.runs.jobs import Job, jobs_told_apart
from harness.runs.store import RunStore, StoredRun, read_frame
from harness.runs.stored_text import printable_frame, read_json
from harness.runs.study_record import RecordedRun, StudyRecord

CODE = "code"
CONFIGS = "configs.json"
ENVIRONMENTS = "environments.json"
ROWS = "summary.parquet"


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds an exported study."""
    return (folder / CONFIGS).is_file()


def exported_jobs(record: StudyRecord, folder: Path) -> list[Job]:
    """The runs that were exported, as the jobs that they were. Raises ConfigError for a config
    that this version does not read."""
    configs = read_by_run(folder / CONFIGS)
    runs = [run for run in record.runs if run.run_id in configs]
    return jobs_told_apart([_job(run, configs[run.run_id], folder) for run in runs])


def exported_rows(folder: Path) -> pd.DataFrame:
    """The rows, as from `collect_rows`. Raises ConfigError for a file that is damaged."""
    return printable_frame(read_frame(folder / ROWS))


def exported_run(folder: Path, run_id: str, label: str, rows: pd.DataFrame) -> StoredRun:
    """A run with its state, config and metrics; its folder is not there, nor are its frames.
    rows: of its study."""
    own = rows[rows["run_id"] == run_id]
    first = own.iloc[0]
    return StoredRun(
        folder / run_id,
        run_id,
        label,
        first["status"],
        str(first["error"]),
        float(first["wall_s"]),
        read_by_run(folder / CONFIGS)[run_id],
        [{str(key): value for key, value in row.items()} for row in own.to_dict("records")],
    )


def run_in_full(job: Job) -> StoredRun | None:
    """A job's run with its steps and requests; None where it was never stored. Raises ConfigError
    where its study is an export, which has none."""
    refuse_export(job.root)
    return RunStore(job.root).find(job.run_id)


def refuse_export(folder: Path) -> None:
    """Raises ConfigError where `folder` is an export, for what needs steps or requests."""
    if is_exported(folder):
        raise ConfigError(
            f"{folder}: an export without steps and requests, which this needs: ask of the results "
            "that it was made from, or repeat the command in its studies/"
        )


def exported_environment(folder: Path, run_id: str) -> dict[str, Any]:
    """The environment that a run was made in; empty where there is none."""
    path = folder / ENVIRONMENTS
    return read_by_run(path).get(run_id, {}) if path.is_file() else {}


def by_run(mappings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`shared`: what all have alike, at any depth; `runs`: by run id, what each has of its own."""
    shared, own = _split(list(mappings.values()))
    return {"shared": shared, "runs": dict(zip(mappings, own, strict=True))}


def read_by_run(path: Path) -> dict[str, dict[str, Any]]:
    """What `by_run` was given, from a file. Raises ConfigError for one that is not such."""
    return _read_by_run(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_by_run(path: Path, _modified_ns: int) -> dict[str, dict[str, Any]]:
    """A report asks for each run's environment and config several times."""
    try:
        values = read_json(path)
        return {run_id: _merged(values["shared"], own) for run_id, own in values["runs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not of an exported study ({error!r}): export it anew"
        ) from error


def _job(run: RecordedRun, config: Mapping[str, Any], folder: Path) -> Job:
    try:
        found = from_mapping(RunConfig, config)
    except ConfigError as error:
        raise ConfigError(
            f"{folder / CONFIGS}: of another version of kvarena ({error}): export it anew"
        ) from error
    return Job(found, run.run_id, run.label, run.part, folder, "", run.search)


def _split(
    mappings: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in mappings]
    for key in dict.fromkeys(key for each in mappings for key in each):
        values = [each[key] for each in mappings if key in each]
        in_all = len(values) == len(mappings)
        if in_all and len(set(map(_text, values))) == 1:
            shared[key] = values[0]
        elif in_all and all(isinstance(value, Mapping) for value in values):
            shared[key], parts = _split(values)
            for target, part in zip(own, parts, strict=True):
                if part:
                    target[key] = part
        else:
            for target, each in zip(own, mappings, strict=True):
                if key in each:
                    target[key] = each[key]
    return shared, own


def _text(value: object) -> str:
    """Tells 1, 1.0 and True apart, which are equal."""
    return json.dumps(value, sort_keys=True, default=str)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: _merged(value, own.get(key, {})) if isinstance(value, Mapping) else value
        for key, value in shared.items()
    }
    return found | {key: value for key, value in own.items() if key not in shared}

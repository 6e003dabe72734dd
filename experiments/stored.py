"""Studies found on disk by the names that a person gives them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.exported import exported_jobs, exported_rows, exported_run, is_exported
from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.runs.jobs import Job
from harness.runs.rows import collect_rows
from harness.runs.store import RunStore, StoredRun
from harness.runs.study_record import (
    FOLDER,
    RecordedRun,
    StudyRecord,
    now,
    read_studies,
    stored_job,
    stored_jobs,
)

NAMES = """\
What is asked of is a name or a path: `sweep_page_size` is that experiment's last command,
`sweep_page_size@1f3a` an earlier one by its id, `sweep_page_size/008df55a` one run of it, and
`path/to/sweep_page_size` (with or without what follows) the same in another folder of results, or
one that `export` wrote."""


class StoredStudy(NamedTuple):
    """A command with its finished runs.

    folder: of its experiment. jobs: those that are stored, in order. rows: a row a repetition, as
    from `collect_rows`. missing: runs that it lacks yet.
    """

    record: StudyRecord
    folder: Path
    jobs: list[Job]
    rows: pd.DataFrame
    missing: int

    @property
    def complete(self) -> pd.DataFrame:
        """The rows of runs that went well."""
        return self.rows[self.rows["status"] == "complete"] if len(self.rows) else self.rows

    @property
    def is_exported(self) -> bool:
        """It has rows and settings; steps and requests of its runs are not there."""
        return is_exported(self.folder)

    def run(self, run_id: str) -> StoredRun:
        """One of its runs, with what it recorded; of an export without its frames."""
        if self.is_exported:
            label = next(job.label for job in self.jobs if job.run_id == run_id)
            return exported_run(self.folder, run_id, label, self.rows)
        found = RunStore(self.folder).find(run_id)
        assert found is not None, run_id
        return found


def find_study(name: str, results_dir: Path) -> StoredStudy:
    """The study or the one run that `name` means (see NAMES), which has at least one stored run.

    Raises ConfigError with the names that there are.
    """
    path, _, id_prefix = name.partition("@")
    folder = _folder(path, results_dir)
    if folder is not None:
        return _study(_chosen(folder, id_prefix, name), folder)
    parent = _folder(str(Path(path).parent), results_dir) if "/" in path else None
    if parent is not None and not id_prefix:
        return _single(parent, Path(path).name)
    is_folder = any(folder.is_dir() for folder in (results_dir / path, Path(path)))
    found = f"{path}/ is a folder without a study: " if is_folder else ""
    above = Path(path).parent
    for base, unknown in ((results_dir / above, Path(path).name), (results_dir, path)):
        if known := available(base):
            raise ConfigError(found + unknown_name(unknown, known, f"study in {base}/"))
    raise ConfigError(f"{found or f'unknown study {path!r}: '}{no_study(results_dir)}")


def available(results_dir: Path) -> tuple[str, ...]:
    """Experiments that have studies in `results_dir`."""
    return tuple(sorted(path.parent.name for path in results_dir.glob(f"*/{FOLDER}")))


def no_study(results_dir: Path) -> str:
    """What is wrong with a folder that `available` finds nothing in."""
    what = "has no study" if results_dir.is_dir() else "is no folder"
    return f"{results_dir}/ {what}: run one (python -m harness experiment=NAME), or --results-dir"


def _folder(name: str, results_dir: Path) -> Path | None:
    for folder in (results_dir / name, Path(name)):
        if (folder / FOLDER).is_dir():
            return folder
    return None


def _chosen(folder: Path, id_prefix: str, name: str) -> StudyRecord:
    records = read_studies(folder)
    found = [record for record in records if record.study_id.startswith(id_prefix)]
    if not found or (id_prefix and len(found) > 1):
        ids = ", ".join(f"{record.study_id} ({record.updated_at[:16]})" for record in records)
        raise ConfigError(f"{name}: {len(found)} studies of that id; there are {ids or 'none'}")
    return found[0]


def _study(record: StudyRecord, folder: Path) -> StoredStudy:
    if is_exported(folder):
        jobs = exported_jobs(record, folder)
        rows = exported_rows(folder)
        return StoredStudy(record, folder, jobs, rows, len(record.runs) - len(jobs))
    jobs = stored_jobs(record, folder)
    if not jobs:
        raise ConfigError(
            f"{folder}@{record.study_id}: none of its {len(record.runs)} runs is stored yet"
        )
    return StoredStudy(record, folder, jobs, collect_rows(jobs), len(record.runs) - len(jobs))


def _single(folder: Path, id_prefix: str) -> StoredStudy:
    if is_exported(folder):
        return _single_exported(folder, id_prefix)
    ids = sorted(p.parent.name for p in folder.glob(f"{id_prefix}*/status.json"))
    if len(ids) != 1:
        raise ConfigError(
            f"{folder}/{id_prefix}: {len(ids)} stored runs of that id; give more of it"
        )
    run = RunStore(folder).find(ids[0])
    if run is None:
        raise ConfigError(f"{folder}/{ids[0]}: is not whole: repeat its command")
    known = {each.run_id: (each, study) for study in read_studies(folder) for each in study.runs}
    asked, study = known.get(run.run_id, (RecordedRun(run.run_id, "", run.label), None))
    job = stored_job(asked, run)
    record = _record_of(asked, folder, study)
    return StoredStudy(record, folder, [job], collect_rows([job]), 0)


def _single_exported(folder: Path, id_prefix: str) -> StoredStudy:
    study = _study(read_studies(folder)[0], folder)
    jobs = [job for job in study.jobs if job.run_id.startswith(id_prefix)]
    if len(jobs) != 1:
        raise ConfigError(
            f"{folder}/{id_prefix}: {len(jobs)} exported runs of that id; give more of it"
        )
    asked = next(run for run in study.record.runs if run.run_id == jobs[0].run_id)
    rows = study.rows[study.rows["run_id"] == asked.run_id].reset_index(drop=True)
    return StoredStudy(_record_of(asked, folder, study.record), folder, jobs, rows, 0)


def _record_of(run: RecordedRun, folder: Path, study: StudyRecord | None) -> StudyRecord:
    """Of one run as a study of its own. study: that it belongs to."""
    return StudyRecord(
        study_id=run.run_id,
        experiment=folder.name,
        question=study.question if study else "",
        preset=study.preset if study else "",
        arguments=study.arguments if study else (),
        figures=(),
        updated_at=study.updated_at if study else now(),
        runs=(run,),
    )

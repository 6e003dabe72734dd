"""A study as files to be published: rows, settings, environments, tables, figures and report."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.exported import CODE, CONFIGS, ENVIRONMENTS, ROWS, by_run, is_exported
from experiments.present import present
from experiments.provenance import environment
from experiments.report.page import make_page
from experiments.stored import StoredStudy
from harness.config import ConfigError
from harness.conversion import to_stored
from harness.runs.code_hash import OWN_CODE
from harness.runs.half_written import partial_path
from harness.runs.stored_text import for_spreadsheets
from harness.runs.study_record import write_study

REPORT = "report.html"
ROWS_AS_TEXT = "summary.csv"
SMALLEST: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": False,
    "store_schema": False,
}
"""Of a hundred columns and few rows most of a Parquet file is what it says about the columns."""

MAX_PLAIN_BYTES = 1_000_000
"""Points of a figure that take more are packed."""


class Exported(NamedTuple):
    """paths: files written, in order. failures: of the comparison's checks, a line each."""

    paths: list[Path]
    failures: tuple[str, ...]


def export_study(
    study: StoredStudy, folder: Path, *, with_report: bool, with_pdf: bool
) -> Exported:
    """Write `study` into `folder`, whole or not at all; an export that lies there gives way.

    The same study gives the same bytes. Raises ConfigError where `folder` holds something else, or
    `study` is an export itself.
    """
    if is_exported(study.folder):
        raise ConfigError(f"{study.folder}: is an export already: copy the folder")
    if folder.exists() and not is_exported(folder) and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something else than an export: give another folder")
    partial, earlier = partial_path(folder), partial_path(folder.with_name(f"{folder.name}.old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        failures = _write(study, partial, with_report=with_report, with_pdf=with_pdf)
        if folder.exists():
            folder.rename(earlier)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)
    return Exported(sorted(path for path in folder.rglob("*") if path.is_file()), failures)


def _write(
    study: StoredStudy, folder: Path, *, with_report: bool, with_pdf: bool
) -> tuple[str, ...]:
    write_study(study.record, folder)
    for_spreadsheets(study.rows).to_csv(folder / ROWS_AS_TEXT, index=False)
    study.rows.to_parquet(folder / ROWS, index=False, **SMALLEST)
    configs = {job.run_id: to_stored(job.config) for job in study.jobs}
    _write_json(folder / CONFIGS, by_run(configs))
    _write_json(folder / ENVIRONMENTS, by_run({j.run_id: environment(j) for j in study.jobs}))
    _write_own_code(study, folder / CODE)
    unread = Console(file=io.StringIO(), markup=False)
    shown = present(study.rows, study.jobs, study.record.figures, folder, unread)
    if not with_pdf:
        for path in shown.paths:
            if path.suffix == ".pdf":
                path.unlink()
    for path in (folder / "figures").glob("*.csv"):
        if path.stat().st_size > MAX_PLAIN_BYTES:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()
    if with_report:
        (folder / REPORT).write_text(make_page([study]), encoding="utf-8")
    return shown.failures


def _write_own_code(study: StoredStudy, folder: Path) -> None:
    """Code of one's own that was measured, each state of their files once in a
    folder `DIGEST`, and in `runs.json` which run had which. Nothing where no run had any."""
    of_run: dict[str, str] = {}
    for job in study.jobs:
        run = job.root / job.run_id
        files = [path for kind in OWN_CODE for path in (run / kind).rglob("*.py")]
        sources = {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(files)}
        if sources:
            of_run[job.run_id] = digest = hashlib.sha256(repr(sources).encode()).hexdigest()[:12]
            for name, source in sources.items():
                path = folder / digest / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source)
    if of_run:
        _write_json(folder / "runs.json", of_run)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, default=str) + "\n")

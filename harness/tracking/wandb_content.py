"""A study's runs as W&B runs on disk."""

from __future__ import annotations

import dataclasses
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from harness.config import TrackingConfig
from harness.runs.rows import stored_settings
from harness.runs.store import RunStore, StoredRun
from harness.runs.study_record import FOLDER as STUDIES
from harness.runs.study_record import RecordedRun, StudyRecord
from harness.tracking import keys, run_content
from harness.tracking.wandb_records import WantedRun, group_name

_LONGEST_TAG = 64


def write_run(
    wandb_id: str,
    recorded: RecordedRun,
    run: StoredRun,
    record: StudyRecord,
    folder: Path,
    config: TrackingConfig,
) -> Path:
    """A stored run, whatever became of it; the folder of its `.wandb` file, which is whole."""
    setting = stored_settings(run)
    values = {
        **run.config,
        keys.SETTING: setting,
        keys.ENVIRONMENT: _environment(run),
        keys.STUDY: {**_study(record), "run_id": run.run_id, "part": recorded.part},
    }
    tags = [setting[name] for name in ("strategy", "workload", "model", "executor")]
    status = [] if run.status == "complete" else [run.status]
    session = _begin(
        config, record, folder, wandb_id,
        job_type=recorded.part, name=run.label, config_values=values, tags=[*tags, *status],
    )  # fmt: skip
    facts: dict[str, Any] = {"status": run.status, "error": run.error, "wall_s": run.wall_s}
    if run.status == "complete":
        facts |= _log_content(session, run)
    session.summary.update(facts)
    return _finish(session, exit_code=0 if run.status == "complete" else 1)


def _log_content(session: Any, run: StoredRun) -> dict[str, Any]:
    """Series, table, histograms and picture; what goes into the summary."""
    session.define_metric(keys.STEP, hidden=True)
    for glob in keys.STEP_GLOBS:
        # the last step's value says nothing of the run: no summary
        session.define_metric(glob, step_metric=keys.STEP, summary="none")
    series = run_content.step_series(run)
    for row in series.frame.to_dict("records"):
        session.log(row)
    requests = run_content.request_table(run)
    logged: dict[str, Any] = {keys.REQUESTS: wandb.Table(dataframe=requests)}
    for key, values in run_content.latencies(run).items():
        if len(values):
            logged[key] = wandb.Histogram(np_histogram=run_content.histogram(values))
    with tempfile.TemporaryDirectory() as scratch:
        # experiments sits above harness and is loaded by name: nothing here depends on it
        picture = importlib.import_module("experiments.run_picture")
        path, caption = picture.save_picture(run, Path(scratch))
        logged[keys.MEMORY] = wandb.Image(str(path), caption=caption)
        session.log(logged)
    return {
        **run_content.summary(run),
        "repetitions": len(run.summary),
        "steps_logged_every": series.stride,
        "requests_logged": len(requests),
    }


def write_aggregate(
    wanted: WantedRun,
    record: StudyRecord,
    folder: Path,
    paths: Sequence[Path],
    config: TrackingConfig,
) -> Path:
    """The study's results: a table of its runs, its comparison, its figures, and all of these as
    an artifact."""
    store = RunStore(folder)
    found = [(each, store.find(each.run_id)) for each in record.runs]
    runs = [(each, run) for each, run in found if run is not None]
    values = {keys.ENVIRONMENT: _environment(runs[0][1]), keys.STUDY: _study(record)}
    session = _begin(
        config,
        record,
        folder,
        wanted.wandb_id,
        job_type=keys.AGGREGATE,
        name=group_name(record),
        config_values=values,
        tags=[keys.AGGREGATE],
    )
    table = pd.DataFrame([_summary_row(each, run) for each, run in runs[: keys.MAX_SUMMARY_ROWS]])
    logged: dict[str, Any] = {keys.SUMMARY_TABLE: wandb.Table(dataframe=table)}
    for path in paths:
        if path.name == "comparison.csv":
            logged[keys.COMPARISON_TABLE] = wandb.Table(dataframe=pd.read_csv(path))
        elif path.suffix == ".png":
            logged[keys.FIGURES + path.stem] = wandb.Image(str(path))
    session.log(logged)
    complete = sum(run.status == "complete" for _, run in runs)
    counts = (complete, len(runs) - complete, len(found) - len(runs))
    session.summary.update(dict(zip(keys.AGGREGATE_FACTS, counts, strict=True)))
    session.log_artifact(_artifact(record, folder, paths, [run for _, run in runs], config))
    return _finish(session, exit_code=0)


def _artifact(
    record: StudyRecord,
    folder: Path,
    paths: Sequence[Path],
    runs: Sequence[StoredRun],
    config: TrackingConfig,
) -> wandb.Artifact:
    """Copies: what is written into `folder` later does not change it."""
    artifact = wandb.Artifact(
        f"{record.experiment}-{record.study_id}",
        keys.ARTIFACT_TYPE,
        description=record.question or None,
        metadata=_study(record),
    )
    for path in paths:
        is_figure = path.parent.name == "figures"
        artifact.add_file(str(path), f"figures/{path.name}" if is_figure else path.name)
    study = folder / STUDIES / f"{record.study_id}.json"
    if study.is_file():
        artifact.add_file(str(study), f"{STUDIES}/{study.name}")
    if config.step_files:
        for run in runs:
            for file in sorted(path for path in run.path.rglob("*") if path.is_file()):
                artifact.add_file(str(file), f"{run.run_id}/{file.relative_to(run.path)}")
    return artifact


def _begin(
    config: TrackingConfig,
    record: StudyRecord,
    folder: Path,
    wandb_id: str,
    *,
    job_type: str,
    name: str,
    config_values: dict[str, Any],
    tags: Sequence[str],
) -> Any:
    """A W&B run that is written to disk only. `resume` stays unset: the same id uploaded twice is
    overwritten, not appended to."""
    kept = dict.fromkeys([record.experiment, record.preset, *tags])
    return wandb.init(
        entity=config.entity,
        project=config.project,
        id=wandb_id,
        group=group_name(record),
        job_type=job_type or "run",
        name=name,
        tags=[tag[:_LONGEST_TAG] for tag in kept if tag],
        config=config_values,
        dir=str(folder),
        mode="offline",
        reinit="finish_previous",
        settings=wandb.Settings(
            silent=True,
            console="off",
            # these would be of this process, not of the run
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )


def _finish(session: Any, exit_code: int) -> Path:
    path = Path(session.dir).parent
    session.finish(exit_code=exit_code)
    return path


def _study(record: StudyRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    del values["runs"]
    return {**values, "arguments": list(record.arguments), "figures": list(record.figures)}


def _environment(run: StoredRun) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.path / "environment.json").read_text())
    return values


def _summary_row(recorded: RecordedRun, run: StoredRun) -> dict[str, Any]:
    head = {
        "run_id": run.run_id,
        "part": recorded.part,
        "label": run.label,
        "status": run.status,
        "error": run.error,
        **stored_settings(run),
        "wall_s": run.wall_s,
        "repetitions": len(run.summary),
    }
    return {**head, **run_content.summary(run)} if run.status == "complete" else head

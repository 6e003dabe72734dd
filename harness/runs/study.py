"""From a command to results on disk and an answer on the screen."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from harness.compose import Command, Study, compose_study
from harness.config import ConfigError
from harness.launching.runner import make_runner
from harness.measure.environment import capture_environment
from harness.reporting import is_full
from harness.runs.display import SweepDisplay, duration
from harness.runs.early_tables import EarlyTables, TableKey
from harness.runs.estimate import estimate_wall_s
from harness.runs.interrupted import go_on, resumable, what_is_left
from harness.runs.jobs import Job, jobs_told_apart
from harness.runs.planning import Plan, plan_study
from harness.runs.redo import Redo
from harness.runs.rows import collect_rows, write_rows
from harness.runs.store import RunStore, StoredRun
from harness.runs.study_record import RecordedRun, StudyRecord, now, write_study
from harness.runs.sweep import pending_jobs
from harness.tracking.tracker import Tracker, make_tracker


def run_study(command: Command, console: Console) -> int:
    """Do what `command` asks, print the answer, return the exit status (1 if a run failed)."""
    study = compose_study(command)
    folder = study.results_dir / study.name
    runner = make_runner(command.launcher, folder)
    plan = plan_study(study, command, folder, console, runner.devices)
    if not plan.jobs:
        raise ConfigError(
            f"experiment={study.name} preset={study.preset}: no part of it is left, because each "
            "is about a key that you gave: give fewer, or leave the experiment out"
        )
    pending = pending_jobs(plan.jobs)
    _announce(study, plan, pending, console)
    _tell_of_damage(pending, console)
    if study.dry_run:
        for job in plan.jobs:
            console.print(f"  {job.part:<10} {job.label}", highlight=False, markup=False)
        return 0
    if runner.words and pending:
        console.print(runner.words, highlight=False, markup=False)
    _check_writable(study)
    RunStore(folder).remove_partial()
    _record(study, command, plan, folder)
    tracker = make_tracker(study.tracking, folder)
    tracker.catch_up(_stored(plan.jobs))
    environment = capture_environment("none", 1)
    display = SweepDisplay(console, pending, plan.jobs, searching=bool(plan.searches))

    redo = Redo(plan.jobs, pending)
    early = EarlyTables(plan.jobs, pending, study.figures, console)

    def finished(job: Job, run: StoredRun | None) -> Sequence[Job]:
        display.finished(job, run)
        if run is not None and not redo.holds(job, run):
            tracker.log_run(run, job.part)
        early.finished(job)
        more = plan.follow(job)
        again, words = redo.follow(job, more)
        if words:
            console.print(words, highlight=False, markup=False)
        display.add([*more, *again])
        return [*more, *again]

    def interrupted() -> str:
        _record(study, command, plan, folder)
        RunStore(folder).remove_partial()
        repeated = go_on("harness", [*command.arguments, *command.launcher])
        left = len(
            pending_jobs(plan.jobs)
        )  # not the display's: the last may be stored, yet unheard of
        stored = len(plan.jobs) - left
        return what_is_left(stored, left, repeated, at_least=bool(plan.searches))

    with resumable(interrupted):
        try:
            with display:
                runner.run(pending, environment, finished, display.started, display.waiting)
        finally:
            for job, run in redo.held:
                tracker.log_run(run, job.part)
            tracker.close()
    record = _record(study, command, plan, folder)
    return _conclude(record, plan.jobs, early.shown, tracker, folder, console)


def _check_writable(study: Study) -> None:
    """Raise ConfigError where no results can be put, before any is made."""
    folder = study.results_dir / study.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError(
            f"results_dir={study.results_dir}: {folder}/ cannot be written to ({error.strerror}): "
            "give another folder"
        ) from error


def _record(study: Study, command: Command, plan: Plan, folder: Path) -> StudyRecord:
    runs = [RecordedRun(job.run_id, job.part, job.label, job.search) for job in plan.jobs]
    record = StudyRecord(
        study_id=plan.study_id,
        experiment=study.name,
        question=study.question,
        preset=study.preset,
        arguments=command.arguments,
        figures=study.figures,
        updated_at=now(),
        runs=tuple(runs),
    )
    write_study(record, folder)
    return record


def _announce(study: Study, plan: Plan, pending: Sequence[Job], console: Console) -> None:
    if study.question:
        console.print(f"{study.name}: {study.question}", highlight=False, markup=False)
    seconds = estimate_wall_s(pending, plan.jobs)
    stored = len(plan.jobs) - len(pending)
    already = f", {stored} already stored" if stored else ""
    count = "1 run" if len(plan.jobs) == 1 else f"{len(plan.jobs)} runs"
    console.print(
        f"{count} ({study.preset}){already}; about {duration(seconds)} to go",
        highlight=False,
    )
    open_searches = sum(job.search is not None for job in pending)
    if open_searches:
        most = max(job.search.most_probes for job in pending if job.search is not None)
        console.print(
            f"searching in {open_searches} cells: up to about {most} runs each, one after the "
            "other, of which the next is listed",
            highlight=False,
        )


def _stored(jobs: Sequence[Job]) -> Iterator[tuple[StoredRun, str]]:
    """Runs that are there already, each with its part."""
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is not None:
            yield run, job.part


def _tell_of_damage(pending: Sequence[Job], console: Console) -> None:
    """Which runs are done again though they were stored, and why."""
    for job in pending:
        if damage := RunStore(job.root).damage(job.run_id):
            console.print(
                f"{job.root / job.run_id}: damaged ({damage}), so it is done again",
                highlight=False,
                markup=False,
            )


def _conclude(
    record: StudyRecord,
    jobs: Sequence[Job],
    shown: Collection[TableKey],
    tracker: Tracker,
    folder: Path,
    console: Console,
) -> int:
    jobs = jobs_told_apart(jobs)
    rows = collect_rows(jobs)
    written = write_rows(rows, folder)
    # experiments sits above harness and is loaded by name: nothing here depends on it
    present = importlib.import_module("experiments.present").present
    presentation = present(rows, jobs, record.figures, folder, console, shown)
    written += presentation.paths
    names = ", ".join(path.name for path in written)
    console.print(f"results: {folder}/  ({names})", highlight=False)
    failed = int((rows["status"] != "complete").sum())
    if failed:
        console.print(f"{failed} of {len(jobs)} runs failed; see the column `error`", style="bold")
    tracker.conclude(record, folder, written, partial(console.print, highlight=False, markup=False))
    return 1 if failed or presentation.failures or len(rows) == 0 else 0

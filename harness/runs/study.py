"""From a command to results on disk and an answer on the screen."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.compose import Command, Composer, Study, compose_study
from harness.config import ConfigError, DeviceConfig, RunConfig, unknown_name
from harness.measure.environment import capture_environment
from harness.runs.code_hash import CodeHashes
from harness.runs.display import SweepDisplay
from harness.runs.estimate import estimate_wall_s
from harness.runs.grid import chosen_allocators, expand
from harness.runs.jobs import Job, allocator_keys, make_job
from harness.runs.key_effects import check_effects
from harness.runs.preflight import Preflight
from harness.runs.rows import collect_rows, write_rows
from harness.runs.store import RunStore, StoredRun
from harness.runs.sweep import pending_jobs, run_jobs
from harness.runs.varied_settings import short_name, varied_settings
from harness.schema import allocator_spec
from harness.tracking.tracker import make_tracker


def run_study(command: Command, console: Console) -> int:
    """Do what `command` asks, print the answer, return the exit status (1 if a run failed)."""
    study = compose_study(command)
    folder = study.results_dir / study.name
    jobs = plan_jobs(study, command, folder, console)
    if not jobs:
        raise ConfigError(
            f"experiment={study.name} preset={study.preset}: no part of it is left, because each "
            "is about a key that you gave: give fewer, or leave the experiment out"
        )
    pending = pending_jobs(jobs)
    _announce(study, jobs, pending, console)
    if study.dry_run:
        for job in jobs:
            console.print(f"  {job.part:<10} {job.label}", highlight=False, markup=False)
        return 0
    RunStore(folder).remove_partial()
    tracker = make_tracker(study.tracking, study.name, folder)
    environment = capture_environment("none", 1)
    try:
        with SweepDisplay(console, len(pending)) as display:

            def finished(job: Job, run: StoredRun | None) -> None:
                display.finished(job, run)
                if run is not None:
                    tracker.log_run(run, job.part)

            run_jobs(pending, environment, finished)
    finally:
        tracker.close()
    return _conclude(study, jobs, folder, console)


def plan_jobs(study: Study, command: Command, folder: Path, console: Console) -> list[Job]:
    """Every run of the study, composed, checked and addressed; the same run is planned once."""
    _check_allocator_keys(study, command)
    composer, preflight, hashes = Composer(), Preflight(), CodeHashes()
    cells = [
        (cell, composer.run([*cell.overrides, *command.verbatim]))
        for cell in expand(study.parts, command.fixed, command.swept, _takes)
    ]
    check_effects({*command.fixed, *command.swept}, [config for _, config in cells])
    for _, config in cells:
        preflight.check(config)
    device_names = {
        config.device: _device_name(config.device)
        for _, config in cells
        if config.executor.kind != "simulated"
    }
    for device_name in device_names.values():
        console.print(f"device: {device_name}", highlight=False)
    jobs: dict[str, Job] = {}
    for cell, config in cells:
        for repeated in _interleave(config):
            device_name = device_names.get(config.device, "simulated")
            job = make_job(repeated, cell.part, folder, device_name, hashes)
            jobs.setdefault(job.run_id, job)
    ordered = sorted(jobs.values(), key=lambda job: (job.is_timed, job.config.seed))
    return _told_apart(ordered)


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, whose labels say what else differs between those of one table."""
    tables: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        key = job.part, job.config.workload.name, job.config.executor.kind
        tables.setdefault(key, []).append(job)
    labels: dict[str, str] = {}
    for group in tables.values():
        varied = varied_settings(group)
        for job in group:
            chosen = [(short_name(key), values[job.run_id]) for key, values in varied.items()]
            words = [f"{name} {value}" for name, value in chosen if value != "-"]
            labels[job.run_id] = " · ".join([job.label, *words])
    return [dataclasses.replace(job, label=labels[job.run_id]) for job in jobs]


def _check_allocator_keys(study: Study, command: Command) -> None:
    """Raise ConfigError for an allocator's option that none of the chosen ones has. What is wrong
    with one that cannot be loaded is told where it is composed."""
    chosen = chosen_allocators(study.parts, command.fixed, command.swept)
    known: set[str] = set()
    for allocator in chosen:
        keys = allocator_keys(allocator_spec(allocator))
        if keys is None:
            return
        known |= keys
    for key in (*command.fixed, *command.swept):
        if key.startswith("allocator.") and key not in known:
            raise ConfigError(unknown_name(key, known, "key"))


def _takes(allocator: str, key: str) -> bool:
    """Whether an allocator takes a key; one that cannot be loaded takes any, so that the error
    is about what is wrong with it."""
    keys = allocator_keys(allocator_spec(allocator))
    return keys is None or key in keys


def _interleave(config: RunConfig) -> list[RunConfig]:
    """Timed repetitions become runs of their own, so that strategies take turns on the machine."""
    if config.executor.kind == "simulated" or config.repetitions == 1:
        return [config]
    return [
        dataclasses.replace(config, seed=config.seed + k, repetitions=1)
        for k in range(config.repetitions)
    ]


def _device_name(config: DeviceConfig) -> str:
    from harness.runs.torch_device import describe_device

    return describe_device(config)


def _announce(study: Study, jobs: Sequence[Job], pending: Sequence[Job], console: Console) -> None:
    if study.question:
        console.print(f"{study.name}: {study.question}", highlight=False, markup=False)
    seconds = estimate_wall_s(pending, jobs)
    stored = len(jobs) - len(pending)
    already = f", {stored} already stored" if stored else ""
    count = "1 run" if len(jobs) == 1 else f"{len(jobs)} runs"
    console.print(
        f"{count} ({study.preset}){already}; about {_duration(seconds)} to go",
        highlight=False,
    )


def _conclude(study: Study, jobs: Sequence[Job], folder: Path, console: Console) -> int:
    rows = collect_rows(jobs)
    written = write_rows(rows, folder)
    # experiments sits above harness and is loaded by name: nothing here depends on it
    present = importlib.import_module("experiments.present").present
    presentation = present(rows, jobs, study.figures, folder, console)
    written += presentation.paths
    names = ", ".join(path.name for path in written)
    console.print(f"results: {folder}/  ({names})", highlight=False)
    failed = int((rows["status"] != "complete").sum())
    if failed:
        console.print(f"{failed} of {len(jobs)} runs failed; see the column `error`", style="bold")
    return 1 if failed or presentation.failures or len(rows) == 0 else 0


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

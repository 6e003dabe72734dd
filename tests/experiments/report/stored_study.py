"""Studies on disk as a command leaves them, run within the test's process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.compose import compose_study, hydra_session, parse_command
from harness.runs.jobs import Job
from harness.runs.planning import plan_study
from harness.runs.study_record import RecordedRun, StudyRecord, write_study
from harness.runs.worker import DeviceCache, do_job

SMALL = (
    "executor=simulated", "model=tiny", "repetitions=6", "workload.num_requests=24",
    "workload.length_scale=0.1", "kv.pool_tokens=512", "tracking=none",
)  # fmt: skip

COMPARED = ("allocator=contiguous,paged", "allocator.expected=max,oracle", "kv.page_size=8,16")

TIMED = ("executor.cost=roofline", "executor.gpu=a100_40gb")

MAPPED = ("allocator=paged,paged_prefix", "measure.memory_map=true", "kv.page_size=16")


def store(folder: Path, *arguments: str, defaults: Sequence[str] = SMALL) -> Path:
    """Run a command line in `folder` and record its study; returns the experiment's folder."""
    given = {argument.split("=", 1)[0] for argument in arguments}
    others = [a for a in defaults if a.split("=", 1)[0] not in given]
    command = parse_command([*others, *arguments, f"results_dir={folder}"])
    with hydra_session():
        study = compose_study(command)
        plan = plan_study(study, command, folder / study.name, Console(file=io.StringIO()))
    devices = DeviceCache()
    jobs: list[Job] = list(plan.jobs)
    while jobs:
        job = jobs.pop(0)
        do_job(job, devices)
        jobs += plan.follow(job)
    record = StudyRecord(
        study_id=plan.study_id,
        experiment=study.name,
        question=study.question,
        preset=study.preset,
        arguments=tuple(a for a in command.arguments if not a.startswith("results_dir=")),
        figures=study.figures,
        updated_at="2026-01-02T03:04:05.000000+00:00",
        runs=tuple(RecordedRun(j.run_id, j.part, j.label, j.search) for j in plan.jobs),
    )
    write_study(record, folder / study.name)
    return folder / study.name


def edit_record(folder: Path, **changes: Any) -> None:
    """Change the only study of an experiment's folder."""
    (path,) = (folder / "studies").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_run(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a run's folder, and its size in the record of what was written."""
    path, status = folder / f"{name}.json", folder / "status.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    if path != status:
        edit_run(folder, "status", lambda v: v["files"].update({path.name: path.stat().st_size}))


def run_folders(folder: Path) -> list[Path]:
    """The runs of an experiment's folder, in the order of its study."""
    (path,) = (folder / "studies").glob("*.json")
    return [folder / run["run_id"] for run in json.loads(path.read_text())["runs"]]

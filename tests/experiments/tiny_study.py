"""Plans and tiny stored runs for the tests of what is made of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import image
from rich.console import Console

from harness.compose import compose_study, hydra_session, parse_command
from harness.runs.jobs import Job
from harness.runs.planning import plan_study
from harness.runs.study_record import RecordedRun, StudyRecord, now, write_study

TINY = (
    "executor=simulated",
    "model=tiny",
    "repetitions=5",
    "workload.num_requests=24",
    "workload.length_scale=0.0625",
    "workload.max_len=1024",
    "tracking=none",
)


class Study(NamedTuple):
    """rows, jobs, figures: what `present` is given."""

    rows: pd.DataFrame
    jobs: list[Job]
    figures: Sequence[str]
    folder: Path


Runner = Callable[..., Study]


def plan(folder: Path, *arguments: str) -> tuple[list[Job], Sequence[str]]:
    """The jobs of a command line, and the figures that its experiment asks for."""
    command = parse_command(arguments)
    with hydra_session():
        study = compose_study(command)
        console = Console(file=io.StringIO())
        plan = plan_study(study, command, folder / study.name, console)
        return plan.jobs, study.figures


def record(study: Study, figures: Sequence[str] | None = None) -> Path:
    """Record a tiny study beside its runs, as a command does; its results folder. figures: in
    place of its experiment's."""
    runs = [RecordedRun(job.run_id, job.part, job.label, job.search) for job in study.jobs]
    names = tuple(study.figures if figures is None else figures)
    name = study.folder.name
    written = StudyRecord(
        "0123456789ab", name, "?", "quick", (f"experiment={name}",), names, now(), tuple(runs)
    )
    write_study(written, study.folder)
    return study.folder.parent


def rewrite(path: Path, content: pd.DataFrame | dict[str, object]) -> None:
    """Put something else into a stored run, which stays one that is whole."""
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path, index=False)
    else:
        path.write_text(json.dumps(content))
    status = path.parent / "status.json"
    values = json.loads(status.read_text())
    values["files"][path.name] = path.stat().st_size
    status.write_text(json.dumps(values))


def check_files(paths: list[Path], name: str) -> pd.DataFrame:
    """The points of figure `name`, which must have all its files and show something."""
    by_suffix = {path.suffix: path for path in paths if path.stem == name}
    assert set(by_suffix) == {".pdf", ".png", ".svg", ".csv", ".json"}
    assert by_suffix[".pdf"].read_bytes().startswith(b"%PDF")
    assert np.ptp(image.imread(by_suffix[".png"])[..., :3]) > 0.5
    origin = json.loads(by_suffix[".json"].read_text())
    assert origin["run_ids"] and origin["config_hash"] and origin["git_revisions"]
    return pd.read_csv(by_suffix[".csv"])

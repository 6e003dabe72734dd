"""Plans and tiny stored runs for the tests of what is made of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from harness.compose import compose_study, hydra_session, parse_command
from harness.runs.jobs import Job
from harness.runs.study import plan_jobs

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
        return plan_jobs(study, command, folder / study.name, console), study.figures

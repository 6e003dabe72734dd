"""The closing table: each goal, what was measured, and how every stage ended."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.gpu.device import Found
from experiments.gpu.figures import draw
from experiments.gpu.goals import Goal, goals
from experiments.gpu.rows import read_rows
from experiments.gpu.running import StageStatus, read_status
from experiments.gpu.stages import STAGES
from experiments.table_output import markdown_cell
from harness.runs.half_written import write_whole

RUN_FILE = "run.json"
_DRY = "dry run on a CPU: no figure here is one of a GPU"
_STYLES = {"met": "green", "missed": "red", "complete": "green", "failed": "red"}


def conclude(
    folder: Path, statuses: Sequence[StageStatus], found: Found, console: Console, *, dry: bool
) -> list[Path]:
    """Print how the stages ended and what the goals are at; write goals.json, goals.csv, goals.md,
    run.json and, of a GPU, figures to `folder`."""
    reached = measured_goals(folder, dry=dry)
    console.print(_stage_table(statuses))
    console.print(_goal_table(reached, dry))
    paths = write(folder, statuses, found, reached, dry=dry)
    rows = [] if dry else read_rows(folder / "kernels")
    return paths + (draw(rows, folder / "figures") if rows else [])


def measured_goals(folder: Path, *, dry: bool) -> list[Goal]:
    """The goals by the stages' rows in `folder`. Of a dry run they are worked out, so that what
    works them out is tried, and then none is measured."""
    rows = {name: read_rows(folder / name) for name in ("kernels", "engine")}
    worked_out = goals(rows["kernels"], rows["engine"])
    if not dry:
        return worked_out
    return [
        g._replace(measured="-", verdict="not measured", cases=0, lost=0, note="")
        for g in worked_out
    ]


def write(
    folder: Path,
    statuses: Sequence[StageStatus],
    found: Found,
    reached: Sequence[Goal],
    *,
    dry: bool,
) -> list[Path]:
    """Markdown, CSV and JSON of the goals, and of the run. Stages that this command did not run
    stand with how they ended before."""
    names = ("goals.md", "goals.csv", "goals.json", RUN_FILE)
    markdown, table, numbers, run = paths = [folder / name for name in names]
    write_whole(markdown, to_markdown(reached, dry=dry))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Goal._fields)
    writer.writerows(reached)
    write_whole(table, text.getvalue())
    records = [goal._asdict() for goal in reached]
    write_whole(numbers, json.dumps({"dry": dry, "goals": records}, indent=1) + "\n")
    write_whole(run, json.dumps(_run_record(folder, statuses, found, dry), indent=1) + "\n")
    return paths


def to_markdown(reached: Sequence[Goal], *, dry: bool) -> str:
    """A table with a line a goal."""
    lines = [f"*{_DRY}*", ""] if dry else []
    lines += ["| goal | target | measured | verdict | cases | |", "|---|---|---|---|---:|---|"]
    lines += ["| " + " | ".join(map(markdown_cell, _texts(goal))) + " |" for goal in reached]
    return "\n".join(lines) + "\n"


def _texts(goal: Goal) -> list[str]:
    cells = (goal.name, goal.target, goal.measured, goal.verdict, goal.counted, goal.note)
    return list(map(str, cells))


def _run_record(
    folder: Path, statuses: Sequence[StageStatus], found: Found, dry: bool
) -> dict[str, Any]:
    ended = {status.stage: status for status in statuses}
    for stage in STAGES:
        earlier = read_status(folder / stage.name)
        if stage.name not in ended and earlier is not None:
            ended[stage.name] = earlier
    return {
        "dry": dry,
        "device": found.name,
        "versions": list(found.versions),
        "stages": {name: asdict(status) for name, status in ended.items()},
    }


def _stage_table(statuses: Sequence[StageStatus]) -> Table:
    table = Table("stage", "status", "s", "ok", "failed", "absent", "cut", "", box=None)
    for each in statuses:
        status = Text(each.status, style=_STYLES.get(each.status, "yellow"))
        counts = (each.num_ok, each.num_failed, each.num_absent, each.num_cut)
        note = each.error or ("from before" if each.reused else "")
        table.add_row(each.stage, status, f"{each.wall_s:.0f}", *map(str, counts), note)
    return table


def _goal_table(reached: Sequence[Goal], dry: bool) -> Table:
    table = Table("goal", "target", "measured", "verdict", "cases", "", box=None)
    table.title = _DRY if dry else "goals"
    for goal in reached:
        verdict = Text(goal.verdict, style=_STYLES.get(goal.verdict, "yellow"))
        cells = (goal.name, goal.target, goal.measured, verdict, goal.counted, goal.note)
        table.add_row(*cells)
    return table

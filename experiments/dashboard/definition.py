"""The workspace and the report, and both as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces.internal import View

from experiments.dashboard.panels import PAGE_SIZE, STRATEGY, figures, sections, table
from harness.runs.half_written import write_whole
from harness.runs.study_record import StudyRecord
from harness.tracking import keys
from harness.tracking.wandb_records import group_name

NAME = "kvarena"

_COLUMNS = ("utilisation", "output_tokens_per_s", "ttft_p99_ms", "saturated_share", "repetitions")


class Dashboard(NamedTuple):
    """What is saved to W&B."""

    workspace: ws.Workspace
    report: wr.Report


class Answer(NamedTuple):
    """A study as its report shows it. comparison: tables and checks, in Markdown. figures: names
    without suffix, as the aggregate run has them."""

    record: StudyRecord
    comparison: str
    figures: Sequence[str]


def make_dashboard(entity: str, project: str, answer: Answer | None) -> Dashboard:
    """The workspace of all runs of a project, and a report: of a study, or of the project."""
    return Dashboard(_workspace(entity, project), _report(entity, project, answer))


def to_json(dashboard: Dashboard) -> str:
    """What W&B would be sent, as a file; the same for the same arguments."""
    values = {
        "workspace": _plain(dashboard.workspace._to_model()),
        "report": _plain(dashboard.report._to_model()),
    }
    for number, (holder, key) in enumerate(_random_ids(values)):
        holder[key] = f"{number:011d}"
    return json.dumps(values, indent=1) + "\n"


def from_json(text: str) -> Dashboard:
    """The inverse of `to_json`, by wandb-workspaces' own models."""
    values = json.loads(text)
    return Dashboard(
        ws.Workspace._from_model(View.model_validate(values["workspace"])),
        wr.Report._from_model(ReportViewspec.model_validate(values["report"])),
    )


def write(dashboard: Dashboard, path: Path) -> None:
    """`to_json` into `path`."""
    write_whole(path, to_json(dashboard))


def _workspace(entity: str, project: str) -> ws.Workspace:
    columns = [f"config:{path.replace('.', '.value.', 1)}" for path in (STRATEGY, PAGE_SIZE)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=section.name, panels=section.panels, is_open=True)
            for section in sections()
        ],
        settings=ws.WorkspaceSettings(x_axis=keys.STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("JobType") != keys.AGGREGATE),
            pinned_columns=[*columns, *(f"summary:{name}" for name in _COLUMNS)],
        ),
    )


def _report(entity: str, project: str, answer: Answer | None) -> wr.Report:
    group = group_name(answer.record) if answer else None
    runs = _runset("runs", group, expr.Metric("JobType") != keys.AGGREGATE)
    sweeps = _runset("sweeps", group, expr.Metric("JobType") == keys.AGGREGATE)
    blocks: list[Any] = []
    if answer is not None:
        command = " ".join(("python -m harness", *answer.record.arguments))
        blocks += [
            wr.H1(text=answer.record.question or answer.record.experiment),
            wr.CodeBlock(code=command, language="markdown"),
            wr.MarkdownBlock(text=answer.comparison),
        ]
    tables = [table(keys.COMPARISON_TABLE), table(keys.SUMMARY_TABLE)]
    shown = [figures(answer.figures)] if answer and answer.figures else []
    blocks += [
        wr.H2(text="Results"),
        wr.PanelGrid(runsets=[sweeps], panels=[*shown, *tables]),
    ]
    for section in sections():
        blocks += [
            wr.H2(text=section.name),
            wr.PanelGrid(runsets=[runs], panels=section.panels),
        ]
    return wr.Report(
        entity=entity,
        project=project,
        title=group or f"{NAME}: {project}",
        description=answer.record.question if answer else "All runs of the project",
        blocks=blocks,
        width="fluid",
    )


def _runset(name: str, group: str | None, job_type: expr.FilterExpr) -> wr.Runset:
    """Of the report's own project: to name one, wandb-workspaces asks the server."""
    of_group = [expr.Metric("Group") == group] if group else []
    return wr.Runset(name=name, filters=expr.And(*of_group, job_type))


def _plain(model: Any) -> dict[str, Any]:
    """As JSON; W&B gets `spec` as a text within."""
    values: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return values


def _random_ids(values: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where wandb-workspaces makes up a name: ids of panels and of sets of runs."""
    if isinstance(values, list):
        for value in values:
            yield from _random_ids(value)
    elif isinstance(values, dict):
        for key, value in values.items():
            if key == "__id__" or (key == "id" and "runFeed" in values and value):
                yield values, key
            else:
                yield from _random_ids(value)

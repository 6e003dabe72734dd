"""Everything that the page says about one study."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.checks import Checks, run_checks
from experiments.report.answer import Answer, answer_of
from experiments.report.cells import make_groups
from experiments.report.figures import FigureView, figure_views, printed_answers
from experiments.report.latency import LatencyView, latency_view
from experiments.report.origin import (
    command_of,
    environments_view,
    facts_of,
    runs_view,
    shared_settings_view,
)
from experiments.report.search_answer import Searched, search_answers
from experiments.report.table_view import TableView, comparison_view, plain_view
from experiments.report.timeline import TimelineView, timeline_view
from experiments.report.waste import WasteView, waste_view
from experiments.stored import StoredStudy

NO_ANSWER = "No run of this study went well, so there is no answer yet."


@dataclass(frozen=True, slots=True)
class Section:
    """prefix: of all ids in it. answer: in one sentence. failed: label and error of each run that
    did not go well."""

    prefix: str
    title: str
    question: str
    answer: str
    remarks: tuple[str, ...]
    answers: tuple[Answer, ...]
    searched: tuple[Searched, ...]
    sustained: tuple[TableView, ...]
    printed: tuple[str, ...]
    tables: tuple[TableView, ...]
    waste: tuple[WasteView, ...]
    latencies: tuple[LatencyView, ...]
    timelines: tuple[TimelineView, ...]
    figures: tuple[FigureView, ...]
    checks: Checks
    failed: tuple[tuple[str, str], ...]
    runs: TableView
    shared: TableView
    environments: TableView
    facts: tuple[tuple[str, str], ...]
    command: str
    missing: int


def make_section(study: StoredStudy, prefix: str) -> Section:
    """Read and draw all of a study. prefix: begins the ids of its elements."""
    searched = tuple(search_answers(study.rows, study.jobs))
    answering = {run_id for found in searched for run_id in found.cells["run_id"]}
    groups = make_groups(study.rows, study.jobs, answering)
    parts = {part for found in searched for part in found.cells["part"]}
    compared = [group for group in groups if group.table.part not in parts]
    answers = tuple(filter(None, map(answer_of, compared)))
    complete = [group for group in groups if group.complete]
    sentences = [found.sentence for found in searched] + [each.sentence for each in answers]
    return Section(
        prefix=prefix,
        title=study.record.experiment,
        question=study.record.question,
        answer=sentences[0] if sentences else NO_ANSWER,
        remarks=() if searched or not answers else answers[0].remarks,
        answers=answers,
        searched=searched,
        sustained=tuple(map(_sustained_view, searched)),
        printed=tuple(printed_answers(study)),
        tables=tuple(comparison_view(group.table) for group in groups),
        waste=tuple(map(waste_view, complete)),
        latencies=tuple(filter(None, (latency_view(group, study) for group in complete))),
        timelines=tuple(filter(None, (timeline_view(group, study) for group in complete))),
        figures=tuple(figure_views(study)),
        checks=run_checks(study.rows, study.jobs),
        failed=_failed(study),
        runs=runs_view(study),
        shared=shared_settings_view(study),
        environments=environments_view(study.jobs),
        facts=tuple(facts_of(study)),
        command=command_of(study),
        missing=study.missing,
    )


def _failed(study: StoredStudy) -> tuple[tuple[str, str], ...]:
    labels = {job.run_id: job.label for job in study.jobs}
    failed = study.rows[study.rows["status"] != "complete"]
    return tuple(
        (f"{labels[row.run_id]} ({row.run_id}, {row.status})", str(row.error))
        for row in failed.itertuples()
    )


def _sustained_view(found: Searched) -> TableView:
    heads = ["strategy", "setting", "sustained", "not sustained", "± (seeds)", "seeds", "probes"]
    lines = [
        [
            cell.strategy,
            cell.varied,
            cell.sustained,
            cell.unsustained,
            cell.half_width,
            cell.seeds,
            cell.num_probes,
            cell.note,
        ]
        for cell in found.cells.itertuples()
    ]
    return plain_view(found.title, [*heads, "note"], lines)

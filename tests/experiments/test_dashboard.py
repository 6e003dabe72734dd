"""The W&B workspace and report as code: their keys are logged, and W&B's models read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import Runner

from experiments.commands.dashboard import main
from harness.config import RunConfig
from harness.measure.metrics import METRIC_NAMES
from harness.runs.rows import settings
from harness.runs.study_record import RecordedRun, StudyRecord, write_study
from harness.tracking import keys

dashboard = pytest.importorskip("experiments.dashboard.definition")

RECORD = StudyRecord(
    study_id="0123456789ab",
    experiment="memory_map",
    question="What does fragmentation look like?",
    preset="quick",
    arguments=("experiment=memory_map",),
    figures=("memory_map",),
    updated_at="2026-01-01",
    runs=(),
)
ANSWER = dashboard.Answer(
    RECORD, "| strategy | used % |\n|---|---|\n| paged | 71.2 |", ("memory_map",)
)


@pytest.fixture(scope="module")
def text() -> str:
    return dashboard.to_json(dashboard.make_dashboard("team", "project", ANSWER))


def panels(values: Any) -> Iterator[dict[str, Any]]:
    """All panels in a definition."""
    if isinstance(values, list):
        for value in values:
            yield from panels(value)
    elif isinstance(values, dict):
        if "viewType" in values:
            yield values
        for value in values.values():
            yield from panels(value)


def shown(panel: dict[str, Any]) -> set[str]:
    """Keys that a panel reads, without the section that they are in."""
    config = panel["config"]
    axes = [config[axis] for axis in ("xAxis", "yAxis", "groupBy") if config.get(axis)]
    found = {*config.get("metrics", ()), *config.get("mediaKeys", ()), *axes}
    if panel["viewType"] == "Weave":
        found |= set(_table_names(config))
    return {key.split(":", 1)[-1].removeprefix("summary_metrics.") for key in found}


def _table_names(values: Any) -> Iterator[str]:
    """Of `runs.summary[NAME]`: the constant of a pick within another."""
    if isinstance(values, dict):
        if values.get("name") == "pick":
            key = values["inputs"]["key"]
            yield key["val"] if "val" in key else key["value"]
        for value in values.values():
            yield from _table_names(value)
    elif isinstance(values, list):
        for value in values:
            yield from _table_names(value)


def test_every_key_that_a_panel_shows_is_logged(text: str) -> None:
    found = {key for panel in panels(json.loads(text)) for key in shown(panel)}
    setting = {f"setting.value.{name}" for name in settings(RunConfig())}
    tables = {keys.REQUESTS, keys.SUMMARY_TABLE, keys.COMPARISON_TABLE, keys.MEMORY}
    figures = {"figures/memory_map"}
    logged = {keys.STEP, *keys.SERIES, *keys.SUMMARY, *setting, *tables, *figures}
    assert found - logged == set()
    # and what a dashboard of this project must show, is shown
    assert set(keys.SHARES.values()) | {keys.SATURATED} <= found
    assert {f"{name}_share" for name in keys.SHARES if name != "token"} <= found
    assert {"output_tokens_per_s", "setting.value.page_size", "saturated_share"} <= found
    assert {name for name in METRIC_NAMES if name.startswith("ttft_p")} <= found
    assert {keys.COMPARISON_TABLE, keys.SUMMARY_TABLE, *figures} <= found
    kinds = [panel["viewType"] for panel in panels(json.loads(text))]
    assert kinds.count("Run Comparer") == 2


def test_columns_and_filters_name_what_is_logged(text: str) -> None:
    feed = json.loads(text)["workspace"]["spec"]["section"]["runSets"][0]
    columns = [column.split(":", 1) for column in feed["runFeed"]["columnOrder"]]
    assert {name for section, name in columns if section == "summary"} <= set(keys.SUMMARY)
    (job_type,) = feed["filters"]["filters"]
    assert (job_type["op"], job_type["value"]) == ("!=", keys.AGGREGATE)


def test_w_and_b_models_read_the_definition_whole(text: str) -> None:
    values = json.loads(text)
    for model, part in ((dashboard.View, "workspace"), (dashboard.ReportViewspec, "report")):
        read = model.model_validate(values[part])
        again = read.model_dump_json(by_alias=True, exclude_none=True)
        # which the reader fills in
        assert json.loads(again.replace(',"inlineComments":[]', "")) == values[part]


def test_what_is_read_back_shows_the_same(text: str) -> None:
    again = dashboard.from_json(text)
    before, after = json.loads(text), json.loads(dashboard.to_json(again))
    assert after["workspace"] == before["workspace"]
    assert [shown(p) for p in panels(after["report"])] == [
        shown(p) for p in panels(before["report"])
    ]
    blocks = [json.dumps(block) for block in after["report"]["spec"]["blocks"]]
    assert any(RECORD.question in block for block in blocks)
    assert any("| paged | 71.2 |" in block for block in blocks)
    assert any("python -m harness experiment=memory_map" in block for block in blocks)


def test_the_same_arguments_give_the_same_definition(text: str) -> None:
    assert dashboard.to_json(dashboard.make_dashboard("team", "project", ANSWER)) == text
    assert dashboard.to_json(dashboard.make_dashboard("other", "project", ANSWER)) != text


def test_the_command_writes_the_definition_and_then_asks_for_a_login(
    run_tiny: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = run_tiny("experiment=memory_map", "workload.num_requests=6", "repetitions=1")
    runs = tuple(RecordedRun(job.run_id, job.part, job.label) for job in study.jobs)
    write_study(dataclasses.replace(RECORD, runs=runs), study.folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    arguments = [f"{study.folder}@0123", "--entity", "team", "--output", str(tmp_path / "d.json")]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "W&B needs a login" in said.err and "wandb login" in said.err
    text = (tmp_path / "d.json").read_text()
    assert "figures/memory_map" in text and RECORD.question in text
    assert dashboard.from_json(text).workspace.entity == "team"
    (tmp_path / "d.json").unlink()
    assert main([*arguments, "--offline"]) == 0
    assert (tmp_path / "d.json").read_text() == text

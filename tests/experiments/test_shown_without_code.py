"""Stored results are shown without executing anything that they name."""

from __future__ import annotations

import ast
import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import Study, record

import harness
from experiments import commands
from experiments.__main__ import main
from harness.cluster.config import ClusterConfig
from harness.config import AllocatorConfig, ExecutorConfig, MeasureConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.facts import CodeFacts
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import make_job
from harness.runs.rows import collect_rows
from harness.runs.worker import DeviceCache, do_job
from harness.workloads.config import WorkloadConfig

OWN = """
from allocators.paged import Paged
from harness.cluster.router import Router


class Mine(Paged):
    name = "mine"

    def __init__(self, pool, knob: int = 1):
        super().__init__(pool)


class First(Router):
    def route(self, request, now_s):
        return 0
"""

EVIL = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
raise SystemExit("executed")
"""

ODD = '=cmd()|[red]<script>x()</script>\x1b]0;title\x07,"a=b'

SHOWING = {
    "report": [["s/single", "s/fleet", "--output", "page.html"]],
    "table": [["s/single", "--format", kind] for kind in ("markdown", "latex", "csv")],
    "export": [["s/single", "--output", "e/single"], ["s/fleet", "--output", "e/fleet"]],
    "compare": [["s/single", "e/single"], ["s/single", "s/fleet"]],
    "figures": [["single", "--results-dir", "s"], ["single", "--results-dir", "e"]],
    "dashboard": [["s/single", "--entity", "me", "--offline", "--output", "board.json"]],
    "track": [["s/single", "--offline"]],
    "calibrate": [["--runs", "s/single"]],
    "replay": [["s/single/RUN"]],
}
"""Commands that show stored results; `replay` has to be told that it may execute their code."""

RUNNING = {
    "advise", "attention_latency", "byte_models", "byte_prompts", "cache_bounds", "completion",
    "doctor", "gpu", "modes",
}  # fmt: skip
"""Commands that do runs of their own, or look at none."""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`s/single` and `s/fleet`, whose allocator's and router's file is evil by now."""
    folder = tmp_path_factory.mktemp("downloaded")
    own = folder / "mine.py"
    own.write_text(OWN)
    base = RunConfig(
        model=model_preset("tiny"),
        workload=WorkloadConfig(num_requests=4, max_len=1024),
        executor=ExecutorConfig(kind="simulated"),
        measure=MeasureConfig(outcome_log=True),
    )
    facts = CodeFacts("mine", {"knob": 1})
    spec = f"{own}:Mine"
    single = [AllocatorConfig(spec, options={"knob": n}, facts=facts) for n in (1, 2)]
    router = ClusterConfig(replicas=2, router=f"{own}:First", facts=CodeFacts("First"))
    odd = [replace(each, facts=CodeFacts(ODD, {"knob": 1})) for each in single]
    asked = {
        "odd": [replace(base, allocator=each) for each in (*odd, AllocatorConfig())],
        "single": [replace(base, allocator=each) for each in (*single, AllocatorConfig())],
        "fleet": [replace(base, allocator=single[0], cluster=router, measure=MeasureConfig())],
    }
    for name, configs in asked.items():
        root, hashes = folder / "s" / name, CodeHashes()
        jobs = [make_job(config, "runs", root, "simulated", hashes) for config in configs]
        for job in jobs:
            assert do_job(job, DeviceCache()).status == "complete"
        record(Study(collect_rows(jobs), jobs, ("compare",), root))
    own.write_text(EVIL)
    return folder


def test_every_command_either_shows_or_runs() -> None:
    assert {*SHOWING} | RUNNING == {*commands.available()} and not {*SHOWING} & RUNNING


@pytest.mark.parametrize("command", SHOWING)
def test_what_runs_name_is_not_executed(
    command: str, downloaded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(downloaded)
    monkeypatch.setattr("experiments.commands.track.upload_study", lambda *_: True)
    run = sorted(downloaded.glob("s/single/*/allocator"))[0].parent.name
    for arguments in SHOWING[command]:
        main([command, *(each.replace("RUN", run) for each in arguments)])
        answer = capsys.readouterr()
        assert not (downloaded / "executed").exists(), (command, arguments)
        if command in ("table", "report", "figures", "export"):
            assert "error" not in answer.err
    if command == "table":
        assert "mine knob=1" in answer.out and "mine knob=2" in answer.out


def test_what_a_stored_text_says_is_shown_and_not_obeyed(
    downloaded: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Terminals, spreadsheets, Markdown, rich markup, paths."""
    folder = shutil.copytree(downloaded / "s", tmp_path / "s") / "odd"
    shown = {}
    for kind in ("markdown", "csv", "latex"):
        main(["table", "odd", "--results-dir", str(folder.parent), "--format", kind])
        shown[kind] = capsys.readouterr().out
        assert "[red]" in shown[kind]
        assert "\x1b" not in shown[kind]
    rows = [line for line in shown["markdown"].splitlines() if line.startswith("| =cmd")]
    assert len(rows) == 2 and all(r"=cmd()\|[red]" in row for row in rows)
    assert "<script>" not in shown["markdown"]
    labels = {row["strategy"] for row in csv.DictReader(io.StringIO(shown["csv"]))}
    assert sorted(label[:7] for label in labels) == ["'=cmd()", "'=cmd()", "paged"]
    (study,) = folder.glob("studies/*.json")
    study.write_text(study.read_text().replace('"odd"', '"../../away"', 1))
    assert main(["export", str(folder)]) == 2
    assert "'../../away' is no name" in capsys.readouterr().err


def test_no_console_reads_markup_in_what_it_prints() -> None:
    """Nor does a new one: labels, paths and errors are not written for rich."""
    root = Path(harness.__file__).parent.parent
    for path in (*root.glob("harness/**/*.py"), *root.glob("experiments/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                named = {each.arg for each in node.keywords}
                assert "markup" in named or "gpu" in str(path), f"{path}:{node.lineno}"

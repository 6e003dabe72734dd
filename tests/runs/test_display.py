"""What stands on the screen while runs are done, and how long they are said to take."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from harness.compose import Composer, hydra_session
from harness.runs import display, estimate
from harness.runs.code_hash import CodeHashes
from harness.runs.display import SweepDisplay
from harness.runs.estimate import Forecast
from harness.runs.jobs import Job, make_job
from harness.runs.live import LiveBoard, LiveFigures
from harness.runs.store import StoredRun


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """Timed, the last one with eight times as many requests as the others."""
    with hydra_session():
        composer = Composer()
        configs = [
            composer.run(["model=tiny", "device=cpu", f"workload.num_requests={n}", f"seed={k}"])
            for k, n in enumerate((10, 10, 10, 80))
        ]
    hashes = CodeHashes()
    return [make_job(config, "", Path("nowhere"), "cpu", hashes) for config in configs]


def run_of(job: Job, wall_s: float, status: str = "complete") -> StoredRun:
    rows = [{"utilisation": 0.5, "saturated_share": 0.75, "output_tokens_per_s": 123.4}]
    config = {"executor": {"kind": "torch"}}
    error = "" if status == "complete" else "no such luck"
    return StoredRun(Path(), job.run_id, job.label, status, error, wall_s, config, rows)  # type: ignore[arg-type]


def console(width: int = 100, *, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, no_color=True)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.file.getvalue())


def test_not_on_a_terminal_there_is_a_line_for_each_run_and_counts_now_and_then(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = console(150, is_terminal=False)
    with SweepDisplay(shown, jobs) as sweep:
        sweep.finished(jobs[0], run_of(jobs[0], 2.0))
        monkeypatch.setattr(display, "COUNTS_EVERY_S", 0.0)
        sweep.finished(jobs[1], run_of(jobs[1], 2.0, "failed"))
    first, second, counts = text_of(shown).splitlines()
    label = f"{jobs[0].label:<58}"
    assert first == f"[1/4] {label} KV used  50.0%  memory-bound  75%    123.4 tok/s    2.0 s"
    assert second.endswith("FAILED: no such luck")
    # a run like the first one, and one of eight times its size
    assert counts == "2 done, 1 failed, 2 left, about 18 s"
    assert (sweep.num_stored, sweep.num_left) == (1, 3)


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_the_run_under_way(jobs: list[Job], width: int) -> None:
    shown = console(width, is_terminal=True)
    board = LiveBoard()
    sweep = SweepDisplay(shown, jobs[1:], jobs)
    sweep.started(jobs[1], board)
    shown.print(sweep)
    assert f"{jobs[1].label[:40]}" in text_of(shown)
    board.write(LiveFigures(0.25, 1234.5, 0.375, 3.0))
    shown = console(width, is_terminal=True)
    shown.print(sweep)
    lines = text_of(shown).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "0 done, 3 left" in lines[0]
    if width == 120:
        assert lines[1].strip() == f"{jobs[1].label}: 25% · 1,234.5 tok/s · waste 38% so far"
    assert sweep.num_stored == 1


def test_many_runs_at_one_time_are_counted_after_the_first_ones(jobs: list[Job]) -> None:
    shown = console(is_terminal=True)
    many = [dataclasses.replace(jobs[0], run_id=str(k)) for k in range(9)]
    sweep = SweepDisplay(shown, many, searching=True)
    for job in many:
        sweep.started(job, LiveBoard())
    shown.print(sweep)
    assert "and 5 more" in text_of(shown)
    assert "at least 9 left" in text_of(shown)


def test_time_left_is_weighed_by_size_and_by_what_runs_have_taken(jobs: list[Job]) -> None:
    forecast = Forecast()
    small, large = forecast.seconds(jobs[0]), forecast.seconds(jobs[3])
    assert large == pytest.approx(8 * small)
    forecast.learn(jobs[0], 3.0)
    forecast.learn(jobs[1], 5.0)
    assert forecast.left_s(jobs[2:]) == pytest.approx(4 + 32)
    assert forecast.left_s(jobs[2:], {jobs[3].run_id: 0.5}) == pytest.approx(4 + 16)
    assert forecast.left_s([]) == 0


def test_simulated_runs_share_the_cores(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "usable_cores", lambda: 4)
    executor = dataclasses.replace(jobs[0].config.executor, kind="simulated")
    config = dataclasses.replace(jobs[0].config, executor=executor)
    many = [dataclasses.replace(jobs[0], config=config, run_id=str(k)) for k in range(8)]
    forecast = Forecast()
    forecast.learn(many[0], 2.0)
    assert forecast.left_s(many) == pytest.approx(8 * 2 / 4)
    assert forecast.left_s(many[:2]) == pytest.approx(2)

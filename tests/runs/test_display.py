"""What stands on the screen while runs are done, and how long they are said to take."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.compose import Composer, hydra_session
from harness.runs import display, estimate
from harness.runs.code_hash import CodeHashes
from harness.runs.display import SweepDisplay, duration
from harness.runs.estimate import Forecast, overhead_s
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


def test_a_line_for_each_run_says_how_much_time_is_left(jobs: list[Job]) -> None:
    shown = console(150, is_terminal=False)
    with SweepDisplay(shown, jobs) as sweep:
        sweep.finished(jobs[0], run_of(jobs[0], 20.0))
        sweep.finished(replace(jobs[1], is_redo=True), run_of(jobs[1], 20.0, "failed"))
        sweep.finished(jobs[2], run_of(jobs[2], 20.0))
        sweep.finished(jobs[3], run_of(jobs[3], 99.0))
    first, second, third, last = text_of(shown).splitlines()
    label = f"{jobs[0].label:<58}"
    figures = "KV used  50.0%  memory-bound  75%    123.4 tok/s   20.0 s"
    learned = Forecast()
    learned.learn(jobs[0], 20.0)
    left = [duration(learned.left_s(jobs[k:]) + overhead_s([])) for k in (1, 3)]
    assert first == f"[1/4] {label} {figures}  about {left[0]} left"
    assert " · again" in second and "FAILED: no such luck  about" in second
    assert third.endswith(f"{figures}  about {left[1]} left")
    assert last.endswith("99.0 s")
    assert (sweep.num_stored, sweep.num_left) == (3, 1)


def test_where_runs_have_no_lines_counts_are_said_now_and_then(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = console(150, is_terminal=False)
    with SweepDisplay(shown, jobs, lists_runs=False) as sweep:
        sweep.finished(jobs[0], run_of(jobs[0], 2.0))
        monkeypatch.setattr(display, "COUNTS_EVERY_S", 0.0)
        sweep.finished(jobs[1], run_of(jobs[1], 2.0, "failed"))
    assert text_of(shown).startswith("2 done, 1 failed, 2 left, about ")


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
    many = [replace(jobs[0], run_id=str(k)) for k in range(9)]
    sweep = SweepDisplay(shown, many, searching=True)
    for job in many:
        sweep.started(job, LiveBoard())
    shown.print(sweep)
    assert "and 5 more" in text_of(shown)
    assert "at least 9 left" in text_of(shown)


def test_time_left_is_weighed_by_size_and_by_what_runs_have_taken(jobs: list[Job]) -> None:
    forecast = Forecast()
    small, large = forecast.seconds(jobs[0]), forecast.seconds(jobs[3])
    assert large > 1.1 * small
    forecast.learn(jobs[0], 3 * small)
    forecast.learn(jobs[1], 5 * small)
    forecast.learn(jobs[2], 90 * small)  # something else was slow
    assert forecast.left_s(jobs[2:]) == pytest.approx(4 * (small + large))
    half_done = {jobs[3].run_id: 0.5}
    assert forecast.left_s(jobs[2:], half_done) == pytest.approx(4 * (small + large / 2))
    assert forecast.left_s([]) == 0


def test_simulated_runs_tell_how_fast_the_machine_is_until_a_timed_one_does(
    jobs: list[Job],
) -> None:
    executor = replace(jobs[0].config.executor, kind="simulated")
    simulated = replace(jobs[0], config=replace(jobs[0].config, executor=executor), run_id="s")
    forecast = Forecast()
    own, timed = forecast.seconds(simulated), forecast.seconds(jobs[1])
    forecast.learn(simulated, 3 * own)
    assert forecast.seconds(jobs[1]) == pytest.approx(3 * timed)
    forecast.learn(jobs[0], 9 * timed)  # with the compilation of its kernels
    assert forecast.seconds(jobs[1]) == pytest.approx(3 * timed)
    forecast.learn(jobs[1], 2 * timed)
    assert forecast.seconds(jobs[1]) == pytest.approx(2 * timed)


def test_the_cells_of_the_main_experiment_are_told_apart() -> None:
    """As they took on two cores that nobody else used, within a third, all runs of a cell."""
    taken_s = {
        ("allocator=contiguous", "allocator.expected=max", "sharegpt_quarter"): 4.13,
        ("allocator=paged", "kv.page_size=1", "sharegpt_quarter"): 2.5,
        ("allocator=paged", "kv.page_size=16", "sharegpt_quarter"): 2.41,
        ("allocator=contiguous", "allocator.expected=max", "alpaca_shared_half"): 4.29,
        ("allocator=paged", "kv.page_size=16", "alpaca_shared_half"): 3.56,
        ("allocator=paged_prefix", "kv.page_size=16", "alpaca_shared_half"): 1.37,
    }
    requests = {"sharegpt_quarter": 56, "alpaca_shared_half": 80}
    with hydra_session():
        composer = Composer()
        guessed = [
            estimate.seconds_of(
                composer.run(
                    [*words, f"workload={workload}", "kv.pool_tokens=1024",
                     f"workload.num_requests={requests[workload]}"],
                )
            )
            for *words, workload in taken_s
        ]  # fmt: skip
    assert guessed == pytest.approx(list(taken_s.values()), rel=1 / 3)


def test_simulated_runs_share_the_cores(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "usable_cores", lambda: 4)
    executor = replace(jobs[0].config.executor, kind="simulated")
    config = replace(jobs[0].config, executor=executor)
    many = [replace(jobs[0], config=config, run_id=str(k)) for k in range(8)]
    forecast = Forecast()
    forecast.learn(many[0], 2.0)
    assert forecast.left_s(many) == pytest.approx(8 * 2 / 4)
    assert forecast.left_s(many[:2]) == pytest.approx(2)

"""Verdicts on made-up rows: each goal is met, missed and not measured where it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.gpu import closing
from experiments.gpu.child import guarded
from experiments.gpu.device import Found
from experiments.gpu.goals import Goal, goals
from experiments.gpu.rows import RowLog, read_rows
from experiments.gpu.running import StageStatus

LARGE, SMALL = 2 * 10**9, 10**6


def decode(
    contender: str, median_us: float, kv_bytes: int = LARGE, page_size: int = 16, **more: Any
) -> dict[str, Any]:
    row = {
        "bench": "decode", "status": "ok", "contender": contender, "batch": 64, "context": 4096,
        "page_size": page_size, "kv_bytes": kv_bytes, "median_us": median_us, "read_share": 0.93,
    }  # fmt: skip
    return row | more


def steps(contender: str = "engine", **more: Any) -> dict[str, Any]:
    row = {
        "bench": "decode_steps", "status": "ok", "contender": contender, "batch": 64,
        "context": 1024, "roofline_share": 0.85, "decode_tokens_per_s": 1000.0, "step_ms": 8.0,
    }  # fmt: skip
    return row | more


def verdict(name: str, kernels: list[dict[str, Any]], engine: list[dict[str, Any]]) -> Goal:
    (found,) = [goal for goal in goals(kernels, engine) if goal.name.startswith(name)]
    return found


def test_nothing_measured_is_no_verdict() -> None:
    found = goals([], [])
    assert {goal.verdict for goal in found} == {"not measured"}
    assert len(found) == 10


def test_the_worst_case_decides_bandwidth() -> None:
    name = "decode attention, 1 GB of KV and more, page 16"
    rows = [decode("paged", 100.0), decode("paged", 100.0, context=8192, read_share=0.899)]
    assert verdict(name, rows[:1], []).verdict == "met"
    found = verdict(name, rows, [])
    assert (found.verdict, found.measured, found.cases) == ("missed", "0.899", 2)
    assert "8192" in found.note
    small = decode("paged", 1.0, SMALL, read_share=0.1)
    assert verdict(name, [rows[0], small], []).cases == 1
    page_one = decode("paged", 1.0, page_size=1, read_share=0.84)
    assert [goal.cases for goal in goals([page_one], [])[:2]] == [0, 1]
    assert goals([page_one], [])[1].verdict == "missed"


def test_the_best_peer_at_the_same_page_size_is_the_one_beside() -> None:
    ours = decode("paged", 100.0)
    peers = [decode("flash_attention_3", 120.0), decode("flashinfer", 96.0)]
    faster = goals([ours, *peers], [])[2]
    assert (faster.verdict, faster.measured) == ("missed", "0.960")
    assert "flashinfer" in faster.note
    other_page = decode("flashinfer", 1.0, page_size=1)
    assert goals([ours, peers[0], other_page], [])[2].verdict == "met"
    assert goals([ours, decode("sdpa", 50.0)], [])[2].verdict == "not measured"


@pytest.mark.parametrize(("peer_us", "expected"), [(10.0, "met"), (8.0, "missed")])
def test_small_kv_is_compared_by_time(peer_us: float, expected: str) -> None:
    rows = [decode("paged", 11.0, SMALL), decode("flashinfer", peer_us, SMALL)]
    assert goals(rows, [])[3].verdict == expected


def test_indirection_is_against_our_own_kernel_without_a_table() -> None:
    without = decode("contiguous", 100.0, page_size=0)
    name = "paged over our kernel"
    assert verdict(name, [without, decode("paged", 101.9)], []).verdict == "met"
    assert verdict(name, [without, decode("paged", 102.1)], []).verdict == "missed"
    at_one = decode("paged", 200.0, page_size=1)
    assert verdict(name, [without, at_one], []).verdict == "not measured"


def test_the_engine_by_shape_beside_vllm_and_its_device_time() -> None:
    rows = [
        steps(),
        steps(context=4096, roofline_share=0.86),
        steps(batch=256, roofline_share=0.8),
        steps("engine, overlap=false", overlap=False, step_ms=99.0, device_ms=1.0),
        steps("vllm", decode_tokens_per_s=1100.0),
    ]
    found = {goal.name: goal.verdict for goal in goals([], rows)}
    assert found["engine, 64 x 1k"] == "met"
    assert found["engine, 64 x 4k"] == "missed"
    assert found["engine, batch 256"] == "met"
    assert found["engine beside vLLM"] == "met"
    assert found["a step over its device time, overlap on"] == "not measured"
    hidden = steps(overlap=True, device_ms=7.7)
    assert goals([], [hidden])[-1].verdict == "missed"
    assert goals([], [hidden | {"device_ms": 7.8}])[-1].verdict == "met"


@pytest.mark.parametrize("status", ["failed", "cut"])
def test_a_lost_case_leaves_no_goal_met(status: str) -> None:
    """Each goal would be met by its other rows; where one of those misses, it is missed anyway."""
    kernels = [
        decode("paged", 100.0), decode("contiguous", 100.0, page_size=0),
        decode("flashinfer", 100.0), decode("paged", 5.0, page_size=1),
        decode("paged", 5.0, SMALL, batch=1), decode("flashinfer", 5.0, SMALL, batch=1),
    ]  # fmt: skip
    engine = [
        steps(overlap=True, device_ms=8.0), steps(context=4096, roofline_share=0.9),
        steps(batch=256), steps("vllm", decode_tokens_per_s=1000.0),
    ]  # fmt: skip
    whole = goals(kernels, engine)
    assert {goal.verdict for goal in whole} == {"met"}
    lost = {"status": status, "error": "wrong | by\n2"}
    figures = ("median_us", "read_share", "roofline_share", "decode_tokens_per_s", "step_ms")
    bare = lambda row: {k: v for k, v in row.items() if k not in figures} | lost  # noqa: E731
    more = [bare(row | {"context": row["context"] + 7}) for row in kernels]
    paired = goals(kernels + more, engine + list(map(bare, engine)))
    assert {goal.verdict for goal in paired} == {"incomplete"}
    assert all(goal.lost and "failed or cut" in goal.counted for goal in paired)
    assert "wrong / by 2" in paired[0].note
    bad = decode("paged", 100.0, context=1, read_share=0.1)
    assert goals([*kernels, *more, bad], [])[0].verdict == "missed"
    assert goals(more, [])[0].verdict == "incomplete"


def test_what_dies_says_what_it_was(tmp_path: Path) -> None:
    log = RowLog(tmp_path, "key", dry=False)
    facts = {k: v for k, v in decode("paged", 1.0).items() if k not in ("status", "read_share")}
    guarded(log, "one", lambda: 1 / 0, **facts)
    first = goals(read_rows(tmp_path), [])[0]
    assert (first.verdict, first.lost) == ("incomplete", 1)
    assert "ZeroDivisionError" in first.note


def test_a_goal_without_figures_says_what_its_rows_say() -> None:
    absent = {"status": "absent", "error": "needs an sm_90"}
    rows = [decode("paged", 1.0), decode("flash_attention_3", 0.0) | absent]
    assert goals(rows, [])[2].note == "flash_attention_3 absent: needs an sm_90"
    crashed = steps("vllm") | {"status": "failed", "error": "out of memory"}
    found = verdict("engine beside vLLM", [], [steps(), crashed])
    assert (found.verdict, found.note) == ("incomplete", "vllm failed: out of memory")
    assert goals([decode("paged", 1.0)], [])[2].note == ""


def test_the_tables_show_how_many_cases_there_are_and_were_lost() -> None:
    lost = decode("paged", 1.0) | {"status": "cut"}
    text = closing.to_markdown(goals([decode("paged", 1.0), lost], []), dry=False)
    assert "| 0.930 | incomplete | 1 + 1 failed or cut |" in text


def test_a_dry_run_reaches_no_goal_whatever_its_rows_say(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "kernels", "key", dry=True)
    log.add("one", **{k: v for k, v in decode("paged", 1.0).items() if k != "status"})
    assert closing.measured_goals(tmp_path, dry=False)[0].verdict == "met"
    found = Found("cpu", False, ())
    console = Console(width=200, record=True)
    paths = closing.conclude(tmp_path, [], found, console, dry=True)
    text = console.export_text() + "".join(path.read_text() for path in paths)
    assert "dry run" in text and "0.930" not in text
    written = json.loads((tmp_path / "goals.json").read_text())
    assert written["dry"] is True
    assert {goal["verdict"] for goal in written["goals"]} == {"not measured"}


def test_a_run_leaves_goals_stages_and_figures(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "kernels", "key", dry=False)
    for page_size in (1, 16):
        row = decode("paged", 100.0, page_size=page_size)
        del row["status"]
        log.add(f"page {page_size}", **row)
    status = StageStatus("kernels", "key", "complete", 1.5, num_ok=2, num_cut=1)
    console = Console(width=200, record=True)
    paths = closing.conclude(tmp_path, [status], Found("GPU", True, ()), console, dry=False)
    assert all(path.is_file() for path in paths)
    assert {"goals.md", "run.json", "gpu_bandwidth.png"} <= {path.name for path in paths}
    shown = console.export_text()
    assert "0.930" in shown and "kernels" in shown and "missed" not in shown
    assert json.loads((tmp_path / "run.json").read_text())["stages"]["kernels"]["num_cut"] == 1
    assert status.is_complete and not status.has_all

"""`python -m experiments advise`: a tiny trace from the command line to the answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.__main__ import main
from experiments.advice.points import pareto
from experiments.advice.question import Question, parse_question
from experiments.advice.report import error_in_words
from experiments.advice.runs import AdviceRuns, attainment, within
from experiments.advice.search import HIGHEST_FRACTION, POOL_TOLERANCE, SAVING
from experiments.advice.setting import KNOBS
from experiments.advice.window import (
    BURSTY_ABOVE,
    SHORTEST_SPAN,
    busiest_window,
    dispersion_of,
    read_rows,
)
from experiments.commands.advise import NO_POOL_WILL_DO, pose
from harness.compose import hydra_session
from harness.config import ConfigError
from harness.engine.device.model_shape import model_preset, model_shape
from harness.runs.one_run import make_workload, simulated_device
from harness.runs.store import RunStore
from harness.runs.worker import DeviceCache, do_job

TINY = model_shape(model_preset("tiny"))
SLO = "ttft_ms:500,tpot_ms:20"


def write_trace(path: Path, requests: int = 120, seed: int = 0, longest: int = 300) -> Path:
    """A trace in the schema of the Azure ones; its middle third comes twice as fast."""
    rng = np.random.default_rng(seed)
    rate = np.where(np.arange(requests) // (requests // 3) == 1, 50.0, 25.0)
    times = np.cumsum(rng.exponential(1 / rate))
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time in times:
        prompt, output = rng.integers(20, longest - 60), rng.integers(10, 60)
        lines.append(f"2023-11-16 18:00:{time:010.7f},{prompt},{output}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "tiny.csv")


def words(trace: Path, *more: str) -> list[str]:
    """A question about the tiny model, on a GPU of some 4,000 tokens beside it."""
    defaults = {
        "trace": str(trace),
        "format": "azure",
        "model": "tiny",
        "gpu": "l4",
        "slo": SLO,
        "requests": "80",
        "results_dir": str(trace.parent / "results"),
        "device.imagined_memory_gib": "0.0032",
        "engine.token_budget": "128",
        "engine.preemption": "recompute",
    }
    defaults |= dict(word.split("=", 1) for word in more)
    return [f"{key}={value}" for key, value in defaults.items() if value]


def prepared(arguments: Sequence[str]) -> tuple[Question, AdviceRuns]:
    question = parse_question(arguments)
    window = busiest_window(read_rows(question), TINY, question)
    root = question.results_dir / "advise"
    return question, AdviceRuns(question, window, TINY, root)


def tried(trace: Path) -> pd.DataFrame:
    (path,) = (trace.parent / "results" / "advise").glob("*/tried.csv")
    return pd.read_csv(path)


def test_the_answer_is_the_best_of_a_full_grid(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No page size and preemption mode does with less, by more than the search's tolerance."""
    arguments = words(trace, "engine.preemption=")
    assert main(["advise", *arguments]) == 0
    said = capsys.readouterr().out
    pool = int(re.search(r"\(([\d,]+) tokens, kv.memory_fraction", said)[1].replace(",", ""))  # type: ignore[index]
    assert "KV" in said and "is the smallest pool found" in said
    with hydra_session():
        question, runs = prepared(arguments)
        window = busiest_window(read_rows(question), TINY, question)
        start = pose(question, window, runs).start
        devices = DeviceCache()
        best = 0.0
        for page_size, preemption in itertools.product(
            KNOBS["page_size"][1], KNOBS["preemption"][1]
        ):
            base = replace(start, page_size=page_size, preemption=preemption)
            smaller = base.at(runs.fraction_of(base, pool / SAVING / (1 + POOL_TOLERANCE)))
            do_job(runs.job(smaller), devices)
            best = max(best, runs.attainment(smaller))
    assert 0 < best < question.attainment
    assert pool < runs.pool_tokens(start) / 1.5  # or there was nothing to find


def test_prefixes_are_looked_for_where_there_are_any(trace: Path) -> None:
    def start(path: Path, name: str) -> tuple[str, bool]:
        arguments = words(path, f"format={name}")
        with hydra_session():
            question, runs = prepared(arguments)
            problem = pose(question, busiest_window(read_rows(question), TINY, question), runs)
        return problem.start.allocator, "allocator" in problem.fixed

    assert start(trace, "azure") == ("paged", True)
    shared = trace.with_suffix(".jsonl")
    row = '{"timestamp": %d, "input_length": 700, "output_length": 9, "hash_ids": [0, %d]}'
    shared.write_text("\n".join(row % (50 * k, k + 1) for k in range(60)))
    assert start(shared, "mooncake") == ("paged_prefix", False)


def test_says_all_that_it_promises_and_repeats_at_once(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *words(trace)]) == 0
    first = capsys.readouterr().out
    for part in (
        "busiest 80 consecutive requests",
        "steady",
        "slots over time: token",
        "One setting changed at a time".lower(),
        "kv.page_size=32",
        "executor.host_us=0",
        "executor.host_us=8000",
        "Memory against goodput",
        "Folk advice",
        "not measured on this machine",
        "python -m harness executor=simulated",
    ):
        assert part.lower() in first.lower()
    folder = next((trace.parent / "results" / "advise").glob("tiny_*"))
    assert {f.name for f in folder.iterdir()} == {
        "tried.csv", "front.csv", "front.json", "front.pdf", "front.png", "front.svg",
    }  # fmt: skip
    stored = {path: path.stat().st_mtime_ns for path in folder.parent.glob("*/status.json")}
    assert main(["advise", *words(trace)]) == 0
    assert capsys.readouterr().out == first
    assert stored == {p: p.stat().st_mtime_ns for p in folder.parent.glob("*/status.json")}
    table = tried(trace)
    assert (table["memory_fraction"] <= HIGHEST_FRACTION).all()
    front = pareto(table)
    assert front["pool_gib"].is_monotonic_increasing
    assert front["goodput_per_s"].is_monotonic_increasing


def test_an_slo_that_no_pool_meets_is_said_with_the_best(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["advise", *words(trace, "slo=ttft_ms:50,tpot_ms:20", "load=20")]) == NO_POOL_WILL_DO
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "No pool of l4 serves 90%" in said
    assert "The best found is" in said


def test_the_window_is_the_busiest_and_is_what_runs(trace: Path) -> None:
    arguments = words(trace, "requests=30")
    question = parse_question(arguments)
    rows = read_rows(question)
    tokens = [row.prompt_len + row.output_len for row in rows]
    times = [row.arrival_s or 0.0 for row in rows]
    spans = [times[k + 29] - times[k] for k in range(len(rows) - 30 + 1)]
    shortest = SHORTEST_SPAN * 30 * times[-1] / len(rows)
    rates = [
        sum(tokens[k : k + 30]) / span if span >= shortest else 0.0 for k, span in enumerate(spans)
    ]
    assert 0.0 in rates  # a burst, which is no load to size for
    best = int(np.argmax(rates))
    with hydra_session():
        _, runs = prepared(arguments)
        window = busiest_window(rows, TINY, question)
        config = runs.config(pose(question, window, runs).start)
        workload = make_workload(config, simulated_device(config))
    assert window.tokens_per_s == pytest.approx(max(rates))
    assert [len(r.prompt_ids) for r in workload.requests] == [
        row.prompt_len for row in rows[best : best + 30]
    ]


@pytest.mark.parametrize(("shape", "is_bursty"), [(1.0, False), (0.25, True)])
def test_bursty_is_what_comes_less_evenly_than_by_chance(
    tmp_path: Path, shape: float, is_bursty: bool
) -> None:
    times = np.cumsum(np.random.default_rng(0).gamma(shape, 0.2 / shape, 250))
    path = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:{t // 60:02.0f}:{t % 60:010.7f},100,20" for t in times]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    question = parse_question(words(path, "requests=200"))
    assert busiest_window(read_rows(question), TINY, question).is_bursty == is_bursty


@pytest.mark.parametrize("tick_s", [1e-3, 1.0])
@pytest.mark.parametrize("is_on_off", [False, True])
def test_ticks_of_the_clock_are_not_burstiness(tick_s: float, is_on_off: bool) -> None:
    """A Poisson process at 3/s, and one that is silent every other minute, by two clocks."""
    for seed in range(20):
        times = np.cumsum(np.random.default_rng(seed).exponential(1 / 3, 600))
        if is_on_off:
            times += 60 * (times // 60)
        found = dispersion_of(np.floor(times / tick_s) * tick_s)
        assert (found > BURSTY_ABOVE) == is_on_off, (seed, found)


def test_a_clock_too_coarse_for_burstiness_is_told() -> None:
    assert np.isnan(dispersion_of(np.repeat([0.0, 60.0, 120.0], 50)))
    assert np.isnan(dispersion_of(np.zeros(50)))


def write_on_off(path: Path, requests: int = 150) -> Path:
    """Two seconds of 40 requests/s, four of none, in turn; lengths grow towards the end."""
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.exponential(1 / 40, requests))
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time in times + 4 * (times // 2):
        lines.append(
            f"2023-11-16 18:00:{time:010.7f},{rng.integers(20, 240)},{rng.integers(10, 60)}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_answer_has_served_the_whole_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_on_off(tmp_path / "on_off.csv")
    arguments = words(trace, "requests=50", "kv.page_size=16")
    status = main(["advise", *arguments])
    said = " ".join(capsys.readouterr().out.split())
    match = re.search(
        r"the whole trace \(150 requests\) has ([\d.]+)% of them within the SLO; its worst 50 in a "
        r"row, from [\d,]+ s on, ([\d.]+)%",
        said,
    )
    assert match, said
    share, worst = (float(each) / 100 for each in match.groups())
    assert worst <= share
    assert (status == 0) == (share >= 0.9) == ("NOT MET" not in said)
    whole = tried(trace).query("whole")
    assert (whole["attainment"].round(3) == round(share, 3)).any()
    with hydra_session():
        _, runs = prepared(arguments)
        (run,) = [RunStore(runs.root).find(i) for i in whole["run_id"].head(1)]
        assert run is not None
        row = run.summary[0]
        slo = {"ttft_ms": 500.0, "tpot_ms": 20.0, "normalised_ms": np.inf}
        assert within(run.frame("requests"), slo).mean() == pytest.approx(attainment(row))


def test_what_the_model_cannot_read_is_left_out_and_counted(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "long.csv")
    text = trace.read_text() + "2023-11-16 18:00:59.0000000,4090,10\n"
    trace.write_text(text)
    question = parse_question(words(trace))
    window = busiest_window(read_rows(question), TINY, question)
    assert (window.num_too_long, window.num_rows) == (1, 121)
    assert window.max_len < 301


def test_a_measured_error_is_shown(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "simulator_error.csv"
    path.write_text("workload,ttft_ms_error,itl_p99_ms_error\na,1.5,-9.25\nb,-3.0,2.0\n")
    question = replace(parse_question(words(trace)), error=path)
    assert "TTFT 3.0 %, ITL p99 9.2 %" in error_in_words(question)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column METRIC_error"):
        error_in_words(question)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("model=opt_13", "did you mean opt_13b"),
        ("gpu=a100", "a100_40gb or a100_80gb"),
        ("format=azur", "did you mean azure"),
        ("trace=nowhere.csv", "trace=nowhere.csv: no such file"),
        ("slo=ttft:2000", "did you mean ttft_ms"),
        ("slo=ttft_ms:fast", "slo=ttft_ms=fast: expected a number"),
        ("slo=", "slo is missing"),
        ("slo=ttft_ms:500,ttft_ms:900", "ttft_ms is given twice"),
        ("modle=tiny", "did you mean model"),
        ("attainment=90", "attainment=90: must be from 0.01 to 1"),
        ("load=0", "load=0: must be at least 0.001"),
        ("error=nowhere.csv", "error=nowhere.csv: no such file"),
        ("kv.page_sise=32", "did you mean kv.page_size"),
        ("kv.memory_fraction=0.9", "is what is searched"),
        ("executor.gpu=h100", "give gpu="),
        ("model=opt_66b", "GiB for its weights alone"),
        ("device.imagined_memory_gib=0.0014", "longest request"),
    ],
)
def test_a_wrong_word_is_told_in_a_line(
    trace: Path, capsys: pytest.CaptureFixture[str], changed: str, named: str
) -> None:
    assert main(["advise", *words(trace, changed)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_key_that_is_given_twice_is_told(trace: Path) -> None:
    for again in (f"slo={SLO}", "kv.page_size=16"):
        with pytest.raises(ConfigError, match="is given twice"):
            parse_question([*words(trace, "kv.page_size=16"), again])


def test_answers_to_different_questions_have_folders_of_their_own(trace: Path) -> None:
    asked = [
        parse_question(words(trace, *changes))
        for changes in (
            (),
            ("slo=ttft_ms:501,tpot_ms:20",),
            ("load=2",),
            ("attainment=0.8",),
            ("host_us=1",),
            ("requests=50",),
            ("kv.page_size=32",),
            ("kv.page_size=16",),
        )
    ]
    assert len({question.name for question in asked}) == len(asked)


def test_a_trace_that_is_none_is_told(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n")
    assert main(["advise", *words(trace)]) == 2
    assert "TIMESTAMP='noon' is not a time" in capsys.readouterr().err
    write_trace(trace, 30)
    assert main(["advise", *words(trace)]) == 2
    assert "30 requests are too few" in capsys.readouterr().err


def test_without_words_it_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise"]) == 2
    assert main(["advise", "--help"]) == 0
    assert "slo=ttft_ms:2000,tpot_ms:100" in capsys.readouterr().out

"""Figures of the experiments on scheduling and memory pressure, from small stored runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from tiny_study import Runner, Study, check_files, plan

from experiments.checks import SHARES
from experiments.figure_style import DEFAULT
from experiments.figures import (
    chunked_prefill,
    long_context,
    preemption,
    rag_agents,
    speculative_decoding,
)
from experiments.line_panels import UNBOUND, Panel, looks_of, memory_note, published
from experiments.tables import make_tables
from harness.engine.scheduling.speculation import expected_tokens_per_step
from harness.runs.jobs import Job, strategy_label
from harness.workloads.digest import requests_digest
from harness.workloads.generate import generate


def _few_of_preemption(job: Job) -> bool:
    """Of each part the corners of its grid."""
    config = job.config
    chosen = {
        "times": True,
        "policies": config.engine.victim in ("latest", "longest")
        and config.engine.watermark in (0.01, 0.1),
        "knowledge": config.allocator.expected != "predicted"
        or config.allocator.expected_bias != 0.5,
    }
    return chosen[job.part]


@pytest.fixture(scope="session")
def preempted(run_tiny: Runner) -> Study:
    return run_tiny(
        "experiment=preemption", "workload.num_requests=40", "repetitions=2",
        "kv.pool_tokens=256", "workload.max_len=512", keep=_few_of_preemption,
    )  # fmt: skip


def _few_drafts(job: Job) -> bool:
    speculation = job.config.engine.speculation
    return job.part == "injected" and (
        speculation.method == "none"
        or (speculation.num_tokens in (1, 4) and speculation.acceptance in (0.0, 0.6))
    )


@pytest.fixture(scope="session")
def drafted(run_tiny: Runner) -> Study:
    return run_tiny(
        "experiment=speculative_decoding", "workload.length_scale=0.25", "repetitions=3",
        "kv.pool_tokens=4096", keep=_few_drafts, own=("executor", "model"),
    )  # fmt: skip


def test_preemption_draws_costs_per_output_token(preempted: Study, tmp_path: Path) -> None:
    rows = preempted.rows
    paths = preemption.draw(rows, preempted.jobs, tmp_path)
    points = check_files(paths, "preemption_pages")
    assert set(points["page_size"]) == {1, 16}
    for mode, group in points.groupby("preemption"):
        assert (group["swapped_per_token_kib"] > 0).any() == (mode == "swap")
    kept = rows[
        (rows["part"] == "times") & (rows["preemption"] == "recompute") & (rows["page_size"] == 16)
    ]
    shown = points[(points["preemption"] == "recompute") & (points["page_size"] == 16)]
    wanted = (kept["recomputed_tokens"] / kept["output_tokens"]).mean()
    assert shown["recomputed_per_token"].item() == pytest.approx(wanted)
    assert wanted > 0


def test_preemption_draws_victims_and_watermarks(preempted: Study, tmp_path: Path) -> None:
    paths = preemption.draw(preempted.rows, preempted.jobs, tmp_path)
    points = check_files(paths, "preemption_policies")
    assert set(points["victim"]) == {"latest", "longest"}
    assert set(points["watermark"]) == {0.01, 0.1}


def test_what_is_not_known_is_drawn_beside_guesses(preempted: Study, tmp_path: Path) -> None:
    paths = preemption.draw(preempted.rows, preempted.jobs, tmp_path)
    points = check_files(paths, "preemption_knowledge")
    assert set(points["expected"]) == {"predicted", "max", "pow2", "oracle", "none"}
    none = points[points["expected"] == "none"]
    assert len(none) == 1 and none["allocator"].item() == "paged"
    guesses = points[points["expected"] == "predicted"]
    assert set(guesses["expected_bias"]) == {1.0, 2.0}
    assert set(guesses["expected_spread"]) == {0.0, 0.5, 1.0}
    exact = guesses[(guesses["expected_bias"] == 1) & (guesses["expected_spread"] == 0)]
    for allocator in ("contiguous", "paged"):
        oracle = points[(points["expected"] == "oracle") & (points["allocator"] == allocator)]
        same = exact[exact["allocator"] == allocator]
        assert same["utilisation"].item() == pytest.approx(oracle["utilisation"].item())


def test_chunked_prefill_has_the_same_requests_in_every_row(tmp_path: Path) -> None:
    jobs, _ = plan(tmp_path, "experiment=chunked_prefill", "preset=full")
    first = [job.config.workload for job in jobs if job.config.seed == 0]
    assert len({requests_digest(generate(each, seed=0, vocab_size=512)) for each in first}) == 1
    schedules = {job.config.engine.schedule for job in jobs}
    assert schedules == {"mixed_chunked", "mixed_unchunked", "prefill_first", "static"}


def test_chunked_prefill_draws_schedules_and_chunks(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=chunked_prefill", "workload.num_requests=12", "workload.length_scale=0.125",
        "repetitions=1", "workload.max_len=2048", "executor.step_ms=5",
    )  # fmt: skip
    assert chunked_prefill.draw(study.rows, study.jobs, tmp_path) == []
    timed = study.rows.assign(executor="torch")
    points = check_files(chunked_prefill.draw(timed, study.jobs, tmp_path), "chunked_prefill")
    assert len(points) == 5
    chunks = points[points["schedule"] == "mixed_chunked"]["token_budget"].tolist()
    assert chunks == [32, 128, 512]
    first_tokens = points[points["schedule"] == "mixed_chunked"]["ttft_p99_ms"]
    assert first_tokens.is_monotonic_decreasing and first_tokens.iloc[0] > first_tokens.iloc[-1]


def test_long_context_shows_what_a_window_gives_back(run_tiny: Runner, tmp_path: Path) -> None:
    few = ("contiguous buddy max", "paged")
    study = run_tiny(
        "experiment=long_context", "model=tiny_32k,tiny_32k_alternating,tiny_32k_window",
        "repetitions=1", "workload.num_requests=6", "workload.max_len=32768",
        "kv.pool_tokens=8192",
        keep=lambda job: job.part == "memory" and strategy_label(job.config.allocator) in few,
    )  # fmt: skip
    paths = long_context.draw(study.rows, study.jobs, tmp_path)
    check_files(paths, "long_context_classes")
    points = check_files(paths, "long_context_requests").set_index(["model", "strategy"])
    full, window = points.loc["tiny_32k"], points.loc["tiny_32k_window"]
    assert (full["dead_per_request"] == 0).all()
    assert window.loc["contiguous buddy max", "dead_per_request"] > 0
    assert window.loc["paged", "dead_per_request"] < 17
    mapped = points.xs("paged", level="strategy")["mapped_per_request"]
    assert mapped["tiny_32k_window"] < mapped["tiny_32k_alternating"] < mapped["tiny_32k"]


def test_long_context_marks_what_was_not_scarce_in_both_figures() -> None:
    points = pd.DataFrame(
        {"model": ["full", "window", "window"], "strategy": ["paged", "paged", "other"],
         "saturated_share": [0.9, 0.2, 0.7]}
    )  # fmt: skip
    values = {metric: 1.0 for metric, _ in long_context.COUNTS} | dict.fromkeys(SHARES, 0.1)
    points = points.assign(**values, **{f"{metric}_ci": 0.0 for metric in values})
    with DEFAULT.context():
        counts = long_context._draw_counts(points, DEFAULT)
        classes = long_context._draw_classes(points, DEFAULT)
    for figure in (counts, classes):
        assert any("less than half of the time" in text.get_text() for text in figure.texts)
        plt.close(figure)
    for axes in counts.axes:
        marks = [text for text in axes.texts if text.get_text() == UNBOUND]
        assert [text.xy[0] for text in marks] == pytest.approx([0.2]), "window, paged"


def _few_of_agents(job: Job) -> bool:
    config = job.config
    if config.allocator.options.get("eviction") == "fifo":
        return False
    if job.part == "capacity":
        return config.kv.pool_tokens in (2048, 4096)
    return config.workload.concurrency == 2


def test_agents_draw_hit_rates_by_capacity_and_concurrency(
    run_tiny: Runner, tmp_path: Path
) -> None:
    study = run_tiny(
        "experiment=rag_agents", "repetitions=1", "workload.num_requests=40",
        "workload.max_len=2048", keep=_few_of_agents,
    )  # fmt: skip
    paths = rag_agents.draw(study.rows, study.jobs, tmp_path)
    capacity = check_files(paths, "rag_agents_capacity")
    assert set(capacity["pool_tokens"]) == {2048, 4096}
    # the run at 4,096 tokens and 12 sessions is of both parts, and run only once
    concurrency = check_files(paths, "rag_agents_concurrency")
    assert set(concurrency["concurrency"]) == {2, 12}
    assert set(concurrency["line"]) == {
        "paged", "paged_cow", "paged_prefix lru", "paged_prefix lfu"
    }  # fmt: skip
    hits = concurrency.groupby("line")["prefix_hit_rate"].max()
    assert hits["paged"] == 0 <= hits["paged_cow"] < hits["paged_prefix lru"]


def test_drafts_bring_what_leviathan_et_al_expect(drafted: Study, tmp_path: Path) -> None:
    paths = speculative_decoding.draw(drafted.rows, drafted.jobs, tmp_path)
    points = check_files(paths, "speculative_decoding_injected")
    injected = points[points["speculation"] == "injected"]
    for acceptance, k in itertools.product((0.0, 0.6), (1, 4)):
        found = injected[(injected["acceptance"] == acceptance) & (injected["num_drafts"] == k)]
        wanted = expected_tokens_per_step(acceptance, k)
        assert found["tokens_per_pass"].item() == pytest.approx(wanted, rel=0.1)
    plain = points[points["speculation"] == "none"]
    assert plain["tokens_per_pass"].eq(1).all() and plain["rejected_per_token"].eq(0).all()


def test_a_table_shows_no_setting_that_nothing_read(drafted: Study) -> None:
    (table,) = make_tables(drafted.rows, drafted.jobs)
    without = [row.labels for row in table.rows if "none" in row.labels]
    assert len(without) == 1 and without[0].count("-") == 2  # drafts, acceptance
    assert all("-" not in row.labels for row in table.rows if "injected" in row.labels)


def test_every_title_of_injected_drafts_says_so() -> None:
    titles = {part: title for part, _, title in speculative_decoding.PARTS}
    assert "Injected" in titles["injected"] and "Injected" in titles["times"]
    assert "simulated" in titles["injected"] and "ngram" in titles["drafts"]


def test_notes_say_how_long_memory_was_scarce() -> None:
    rows = pd.DataFrame({"saturated_share": [0.9, 0.2], "memory_bound": [True, False]})
    assert "20 to 90 %" in memory_note(rows) and "not memory-bound" in memory_note(rows)
    assert "not memory-bound" not in memory_note(rows[:1])


def test_published_numbers_of_sarathi_and_fig_19() -> None:
    assert max(published("sarathi")["capacity_gain"].values()) == 5.6
    assert published("pagedattention")["fig19_preemption"]["comparable_page_sizes"] == [16, 64]


def test_looks_tell_values_apart() -> None:
    looks = looks_of(["a", "b", "a", "c"])
    assert list(looks) == ["a", "b", "c"] and len(set(looks.values())) == 3
    assert Panel("x", "y").scale == 1.0

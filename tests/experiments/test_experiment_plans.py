"""Every experiment composes, and plans the runs that it is meant to."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import plan

from experiments.figures import available
from harness.config import ExecutorConfig
from harness.runs.jobs import Job
from harness.runs.one_run import environment_of, execute_run, simulated_device

PAGES = 9
REFERENCES = 6  # max, pow2, oracle on buddy and on first_fit
TIMED = 6  # repetitions, each a run of its own
FEW = 5  # timed cells of a workload that a command does unless it is asked for more
WASTE = {"sharegpt": REFERENCES + 2 * PAGES, "alpaca_shared": REFERENCES + 3 * PAGES}

EXPECTED = {
    ("sweep_page_size", "quick"): {
        ("waste", "sharegpt"): REFERENCES + 5,
        ("waste", "alpaca_shared"): REFERENCES + 2 * 5,
        ("times", "sharegpt"): TIMED * 5,
        ("times", "alpaca_shared"): TIMED * 4,
    },
    ("sweep_page_size", "full"): {
        ("waste", "sharegpt"): WASTE["sharegpt"],
        ("waste", "alpaca_shared"): WASTE["alpaca_shared"],
        ("times", "sharegpt"): TIMED * WASTE["sharegpt"],
        ("times", "alpaca_shared"): TIMED * WASTE["alpaca_shared"],
    },
    ("compare_allocators", "quick"): {
        (part, workload): count
        for part, count in (("waste", REFERENCES + 3), ("times", TIMED * 5))
        for workload in ("sharegpt", "alpaca_shared")
    },
    ("compare_allocators", "full"): {
        (part, workload): count * (REFERENCES + 3)
        for part, count in (("waste", 1), ("times", 6))
        for workload in ("sharegpt", "alpaca_shared")
    },
    ("sweep_memory_fraction", "quick"): {
        (part, workload): count
        for part, count in (("waste", 4 * 6), ("times", TIMED * 2 * 2))
        for workload in ("steady", "bursty")
    },
    ("sweep_memory_fraction", "full"): {
        (part, workload): count
        for part, count in (("waste", 4 * 6), ("times", TIMED * 6 * 6))
        for workload in ("steady", "bursty")
    },
    ("sweep_page_size", "gpu"): {("times", "sharegpt"): TIMED * 5},
    ("compare_allocators", "gpu"): {("times", "sharegpt"): TIMED * 5},
    ("sweep_memory_fraction", "gpu"): {("times", "lognormal"): TIMED * 2 * 2},
    ("preemption", "quick"): {
        ("times", "sharegpt"): TIMED * 2 * 2,
        ("policies", "sharegpt"): 2 * 4 * 3,
        ("knowledge", "sharegpt"): 2 * (3 * 3 + 3),
    },
    ("preemption", "full"): {
        ("times", "sharegpt"): TIMED * 2 * PAGES,
        ("times", "alpaca_like"): TIMED * 2 * PAGES,
        ("policies", "sharegpt"): 2 * 4 * 4,
        ("knowledge", "sharegpt"): 2 * (5 * 3 + 3),
    },
    ("chunked_prefill", "quick"): {("times", "long_arrivals"): TIMED * (3 + 2)},
    ("chunked_prefill", "full"): {("times", "long_arrivals"): TIMED * (5 + 3)},
    ("long_context", "quick"): {
        ("memory", "long_prompts"): 3 * (4 + 2),
        ("times", "long_prompts"): TIMED * 3,
    },
    ("long_context", "full"): {
        ("memory", "long_prompts"): 3 * (4 + 2),
        ("times", "long_prompts"): TIMED * 3 * 2,
    },
    ("rag_agents", "quick"): {
        ("capacity", "agents"): (3 + 2) * 5,
        ("concurrency", "agents"): (3 + 2) * 6,
    },
    ("rag_agents", "full"): {
        ("capacity", "agents"): (3 + 2) * 5,
        ("concurrency", "agents"): (3 + 2) * 6,
        ("times", "agents"): TIMED * 3 * 2,
    },
    ("speculative_decoding", "quick"): {
        ("injected", "sharegpt"): 8 * 6 + 1,
        ("times", "sharegpt"): TIMED * (2 * 2 + 1),
        ("drafts", "sharegpt"): TIMED * (1 + 1 + 2),
    },
    ("speculative_decoding", "full"): {
        ("injected", "sharegpt"): 8 * 6 + 1,
        ("times", "sharegpt"): TIMED * (8 * 6 + 1),
        ("drafts", "sharegpt"): TIMED * (8 + 1 + 2 * 8),
    },
    ("parallel_sampling", "quick"): {
        ("waste", "alpaca_like"): 4 * 5,
        ("waste", "sharegpt"): 3 * 3,
        ("times", "alpaca_like"): TIMED * 4,
    },
    ("parallel_sampling", "full"): {
        ("waste", "alpaca_like"): 4 * 5,
        ("waste", "sharegpt"): 4 * 5,
        ("times", "alpaca_like"): TIMED * 4 * 5,
    },
    ("beam_search", "quick"): {
        ("waste", "alpaca_like"): 4 * 5,
        ("waste", "sharegpt"): 3,
        ("times", "alpaca_like"): TIMED * 5,
    },
    ("beam_search", "full"): {
        ("waste", "alpaca_like"): 4 * 5,
        ("waste", "sharegpt"): 4 * 5,
        ("times", "alpaca_like"): TIMED * 4 * 5,
    },
    ("shared_prefix", "quick"): {
        ("capacity", "translation"): 8,
        ("rates", "translation"): 8 * 5,
        ("times", "translation"): TIMED * 4,
    },
    ("shared_prefix", "full"): {
        ("capacity", "translation"): 8,
        ("rates", "translation"): 8 * 12,
        ("times", "translation"): TIMED * 8,
    },
    ("chatbot", "quick"): {
        ("capacity", "chatbot"): 8,
        ("rates", "chatbot"): 6 * 4,
        ("times", "chatbot"): TIMED * 5,
    },
    ("chatbot", "full"): {
        ("capacity", "chatbot"): 8,
        ("rates", "chatbot"): 8 * 10,
        ("times", "chatbot"): TIMED * 8,
    },
    ("calibration", "quick"): {
        ("fit", "lognormal"): 2 + 2 + 1 + 1 + 1,
        ("held_out", "sharegpt"): TIMED * 2 * 2,
        ("held_out", "alpaca_shared"): TIMED * 2 * 2,
    },
    ("calibration", "full"): {
        ("fit", "lognormal"): 3 * (2 + 2 + 1 + 1 + 1),
        ("held_out", "sharegpt"): TIMED * 2 * 2,
        ("held_out", "alpaca_shared"): TIMED * 2 * 2,
    },
    ("memory_map", "quick"): {("map", "sharegpt"): 3},
    ("memory_map", "full"): {("map", "sharegpt"): 3},
    ("first_fit_gain", "quick"): {
        ("capacity", "sharegpt"): 3 * 3 + 1,
        ("rates", "sharegpt"): (2 * 3 + 1) * 6,
    },
    ("first_fit_gain", "full"): {
        ("capacity", "sharegpt"): 3 * 3 + 1,
        ("rates", "sharegpt"): (3 * 3 + 1) * 12,
    },
    **{
        ("reservation_placement", preset): {
            ("capacity", "sharegpt"): 4 * 3,
            ("goodput", "sharegpt"): 4 * 3,
        }
        for preset in ("quick", "full")
    },
    ("estimate_price", "quick"): {
        ("capacity", "sharegpt"): 2 * (5 * 3 + 3),
        ("goodput", "sharegpt"): 2 * (5 * 3 + 3),
    },
    ("estimate_price", "full"): {
        ("capacity", "sharegpt"): 2 * (11 * 4 + 3),
        ("goodput", "sharegpt"): 2 * (11 * 4 + 3),
    },
    ("phase_map", "quick"): {("capacity", "lognormal"): 3, ("map", "lognormal"): 3 * 4 * 3 * 3},
    ("phase_map", "full"): {("capacity", "lognormal"): 3, ("map", "lognormal"): 3 * 9 * 5 * 3},
    **{
        ("fleet", preset): {("fleet", "system_prompts"): 2 + (2 + 2 + 1) * (2 + 1)}
        for preset in ("quick", "full")
    },
    ("tensor_parallel", "quick"): {("ranks", "sharegpt"): TIMED * 2 * 2},
    ("tensor_parallel", "full"): {("ranks", "sharegpt"): TIMED * 3 * 4},
    ("motivation", "quick"): {
        ("bounds", "sharegpt"): 3,
        ("users", "sharegpt"): 3,
        ("paper", "sharegpt"): 3,
    },
    ("motivation", "full"): {
        ("bounds", "sharegpt"): 6,
        ("users", "sharegpt"): 3,
        ("paper", "sharegpt"): 3,
    },
}

PAPER_ALONE = {
    "paper_fig12": {("fig12", "sharegpt"): 8 + 2 * 5, ("fig12", "alpaca_like"): 8 + 2 * 5},
    "paper_fig14": {("fig14", "alpaca_like"): 2 * 3 * 4},
    "paper_fig15": {("fig15", "alpaca_like"): 2 * 3, ("fig15", "sharegpt"): 2 * 2},
    "paper_fig16": {("fig16", "translation"): 2 * 3},
    "paper_fig17": {("fig17", "chat_rounds"): 5},
}
"""Of a search, its first probe alone."""

for preset, overloaded, batched, fewer_pages, host_times in (
    ("quick", 5, 6, 5, 3),
    ("full", 6, 4 + 6, PAGES, 5),
):
    running = {("fig13", "sharegpt"): batched, ("fig13", "alpaca_like"): 2 * 6}
    recomputed, swapped = (
        {(part, name): count for name in ("sharegpt", "alpaca_like")}
        for part, count in (("fig18", PAGES + fewer_pages), ("fig19", fewer_pages))
    )
    paper = {
        **PAPER_ALONE,
        "paper_fig2": {("fig2", "sharegpt"): overloaded},
        "paper_fig18": recomputed,
        "paper_host_time": {
            ("host_batched", "sharegpt"): 2 * host_times,
            ("host_batched", "alpaca_like"): 2 * 3,
            ("host_rates", "sharegpt"): 3 * 3,
        },
    }
    paper["paper_fig13"] = paper["paper_fig2"] | running
    paper["paper_fig19"] = recomputed | swapped
    paper["paper"] = {place: count for parts in paper.values() for place, count in parts.items()}
    EXPECTED |= {(name, preset): parts for name, parts in paper.items()}


def test_every_experiment_is_expected_here() -> None:
    files = (importlib.resources.files("conf") / "experiment").iterdir()
    assert {f.name.removesuffix(".yaml") for f in files} == {name for name, _ in EXPECTED}


@functools.cache
def planned(experiment: str, preset: str) -> tuple[list[Job], Sequence[str]]:
    return plan(Path("nowhere"), f"experiment={experiment}", f"preset={preset}")


@pytest.mark.parametrize(("experiment", "preset"), EXPECTED)
def test_plans_as_many_runs_as_meant(experiment: str, preset: str) -> None:
    jobs, figures = planned(experiment, preset)
    counts = Counter((job.part, job.config.workload.name) for job in jobs)
    assert counts == EXPECTED[experiment, preset]
    assert set(figures) <= set(available())


@pytest.mark.parametrize(("experiment", "preset"), EXPECTED)
def test_timed_cells_are_few_and_take_turns_in_six_repetitions(experiment, preset) -> None:
    """But for those whose steps are fitted: they are no figure of how long anything takes."""
    jobs, _ = planned(experiment, preset)
    timed = [job for job in jobs if job.is_timed and job.part != "fit"]
    assert [job.config.seed for job in timed] == sorted(job.config.seed for job in timed)
    rounds = [[job for job in timed if job.config.seed == seed] for seed in range(TIMED)]
    cells = [[(job.part, replace(job.config, seed=0)) for job in each] for each in rounds]
    assert cells == TIMED * [cells[0]] and sum(map(len, cells)) == len(timed)
    each = Counter((part, config.workload.name) for part, config in cells[0])
    assert preset == "full" or all(count <= FEW for count in each.values())


@pytest.mark.parametrize("experiment", ["sweep_page_size", "compare_allocators"])
def test_simulated_parts_have_ten_seeds_and_one_pool_for_all(experiment: str) -> None:
    jobs, _ = planned(experiment, "quick")
    waste = [job.config for job in jobs if job.part == "waste"]
    assert {config.repetitions for config in waste} == {10}
    slots = {
        (c.workload.name, (c.kv.pool_tokens or 0) // c.kv.page_size * c.kv.page_size) for c in waste
    }
    assert len(slots) == 2


def test_a_chosen_allocator_leaves_the_references_out(tmp_path: Path) -> None:
    jobs, _ = plan(tmp_path, "experiment=sweep_page_size", "allocator=paged_prefix")
    assert {job.config.allocator.name for job in jobs} == {"paged_prefix"}


def test_a_chosen_workload_leaves_the_other_one_out(tmp_path: Path) -> None:
    jobs, _ = plan(tmp_path, "experiment=sweep_page_size", "workload=chat")
    assert {job.config.workload.name for job in jobs} == {"chat"}
    assert len(jobs) == REFERENCES + 5 + TIMED * 5


def test_a_trace_needs_no_other_key(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [
        f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.0,{400 + 37 * i % 4000},{i + 1}"
        for i in range(300)
    ]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    jobs, _ = plan(
        tmp_path, "experiment=sweep_page_size", "workload=trace", "workload.format=azure",
        f"workload.path={trace}",
    )  # fmt: skip
    assert {job.part for job in jobs} == {"waste", "times"}
    for part in ("waste", "times"):
        config = next(
            job.config
            for job in jobs
            if (job.part, job.config.allocator.expected, job.config.allocator.options.get("fit"))
            == (part, "max", "buddy")
        )
        simulated = replace(config, executor=ExecutorConfig("simulated"), repetitions=2)
        device = simulated_device(simulated)
        record = execute_run(simulated, "run", "trace", device, environment_of(device), tmp_path)
        first, second = record.summary
        assert first["num_refused"] == second["num_refused"] == 0
        assert first["memory_bound"] and second["memory_bound"]
        assert first["prompt_tokens"] != second["prompt_tokens"]


@pytest.mark.parametrize("name", available())
def test_every_module_of_figures_draws(name: str) -> None:
    assert callable(importlib.import_module(f"experiments.figures.{name}").draw)


@pytest.mark.parametrize(("experiment", "preset"), EXPECTED)
def test_no_two_runs_of_a_part_have_one_label(experiment: str, preset: str) -> None:
    jobs, _ = planned(experiment, preset)
    labels = Counter((job.part, job.label) for job in jobs)
    assert labels.most_common(1)[0][1] == 1

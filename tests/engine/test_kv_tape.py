"""Whatever is decided, each forward finds the keys and values of exactly the tokens before it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from kv_tape import KVTape
from simulated_run import Setup, SimulatedRun, branching, random_requests

from harness.engine.request import Request
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.engine.simulated_executor import SimulatedExecutor

STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    ("paged", {}),
    ("paged_cow", {}),
    ("paged_prefix", {}),
    ("paged_prefix", {"eviction": "fifo"}),
    ("paged_prefix", {"eviction": "lfu"}),
    ("contiguous", {"fit": "first_fit"}),
]


def random_case(seed: int) -> tuple[Setup, list[Request]]:
    """Everything at once: strategies, groups of layers, schedules, preemption, samples, beams,
    drafts, chats and shared prefixes, on pools that are too small."""
    rng = random.Random(seed)
    name, options = rng.choice(STRATEGIES)
    windows: tuple[int | None, ...] = (None,)
    if name != "contiguous":
        windows = rng.choice([(None,), (8,), (None, 8), (None, 6, 11)])
    num_pages = rng.choice([16, 20, 28, 40]) * len(windows)
    setup = Setup(
        name,
        options,
        num_pages=num_pages,
        schedule=rng.choice(["mixed_chunked", "mixed_unchunked", "static", "prefill_first"]),
        preemption=rng.choice(["swap", "recompute"]),
        token_budget=rng.choice([16, 40, 64]),
        watermark=rng.choice([0.0, 0.05, 0.15]),
        expected=rng.choice(["none", "none", "max", "predicted", "oracle"]),
        bias=rng.choice([0.5, 1.0]),
        host_pages=rng.choice([num_pages, num_pages // 3]),
        victim=rng.choice(["latest", "longest", "least_progress", "cheapest"]),
        windows=windows,
    )
    shared_len, chat = rng.choice([0, 7, 9]), rng.random() < 0.5
    requests = random_requests(
        seed, num_requests=18, max_prompt=14, max_output=12, shared_len=shared_len, chat=chat,
        slack=1.0,
    )  # fmt: skip
    if rng.random() < 0.4:
        requests = branching(requests, seed)
    elif rng.random() < 0.3:
        drafts = SpeculationConfig("injected", num_tokens=3, acceptance=0.5)
        setup = replace(setup, speculation=drafts)
    return setup, requests


def check(seed: int) -> None:
    setup, requests = random_case(seed)
    tape = KVTape(SimulatedExecutor(1.0, vocab_size=50), setup.page_size, setup.windows)
    run = SimulatedRun(setup, tape)
    tape.known_ids = lambda: {
        sequence.seq_id: sequence.token_ids
        for group in run.scheduler._running
        for sequence in group.sequences
    }
    run.run(requests)
    assert not tape.wrong, f"seed {seed}, {setup}: {tape.wrong[:3]}"
    run.inner.check_integrity()


@pytest.mark.parametrize("block", range(8))
def test_every_forward_reads_what_was_computed(block: int) -> None:
    for seed in range(60 * block, 60 * (block + 1)):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_every_forward_reads_what_was_computed_in_many_more(block: int) -> None:
    for seed in range(10_000 + 500 * block, 10_500 + 500 * block):
        check(seed)

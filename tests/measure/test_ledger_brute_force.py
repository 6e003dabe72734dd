"""The ledger against a classifier that looks at every slot, on random runs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from brute_force import Auditor
from simulated_run import ALLOCATORS, Setup, SimulatedRun, branching, random_requests

from harness.engine.request import Request
from harness.engine.scheduling.speculation import SpeculationConfig

ESTIMATES = ("none", "max", "pow2", "oracle", "predicted", "none", "predicted")


def random_setup(seed: int, allocator: str, options: dict[str, Any]) -> Setup:
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 16])
    return Setup(
        allocator,
        options,
        num_pages=-(-rng.choice([80, 130, 250]) // page_size),
        page_size=page_size,
        schedule=rng.choice(["mixed_chunked", "mixed_unchunked"]),
        token_budget=rng.choice([7, 32, 100]),
        max_num_seqs=rng.choice([3, 100]),
        watermark=rng.choice([0.0, 0.01, 0.2]),
        expected=rng.choice(ESTIMATES),
        bias=rng.choice([0.5, 1.0, 1.5]),
        spread=rng.choice([0.0, 0.5]),
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_every_slot_is_where_the_ledger_says(
    allocator: str, options: dict[str, Any], seed: int
) -> None:
    setup = random_setup(seed, allocator, options)
    requests = random_requests(
        seed,
        shared_len=(0, 21)[seed % 2],
        chat=seed % 5 == 0,
        spread_s=(0.0, 60.0)[seed % 3 == 0],
        max_prompt=(10, 30)[seed % 2],
        max_output=(20, 60)[seed % 4 > 1],
        num_requests=15,
    )
    run = SimulatedRun(setup)
    auditor = Auditor(run)
    run.run(requests, closed_loop=4 if seed % 7 == 1 else None, recorder=auditor)
    auditor.check()
    assert len(run.records) == len(requests)


def every_way(allocator: str, options: dict[str, Any], seed: int) -> tuple[Setup, list[Request]]:
    """A run in which decoding modes, schedules and ways of preemption come together."""
    rng = random.Random(seed)
    setup = replace(
        random_setup(seed, allocator, options),
        schedule=rng.choice(["mixed_chunked", "mixed_unchunked", "prefill_first", "static"]),
        max_num_seqs=rng.choice([6, 100]),
        preemption=rng.choice(["recompute", "swap"]),
        host_pages=rng.choice([5, 100]),
        victim=rng.choice(["latest", "longest", "least_progress", "cheapest"]),
        windows=rng.choice([(None,), (None,), (9,)]),
    )
    requests = random_requests(
        seed, shared_len=(0, 21)[seed % 2], max_output=(20, 60)[seed % 4 > 1], num_requests=12
    )
    if seed % 3:
        requests = branching(requests, seed)
    else:
        setup = replace(
            setup, speculation=SpeculationConfig(("injected", "ngram")[seed % 2], num_tokens=3)
        )
    return setup, requests


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_every_slot_of_every_way_of_decoding(
    allocator: str, options: dict[str, Any], seed: int
) -> None:
    _audit(*every_way(allocator, options, seed))


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("allocator", ["paged", "paged_cow", "paged_prefix"])
def test_every_slot_that_groups_of_layers_share(allocator: str, seed: int) -> None:
    setup, requests = every_way(allocator, {}, seed)
    windows = random.Random(seed).choice([(None, 9), (None, 5, 5), (13, 4)])
    _audit(replace(setup, windows=windows, num_pages=len(windows) * setup.num_pages), requests)


def _audit(setup: Setup, requests: list[Request]) -> None:
    run = SimulatedRun(setup)
    auditor = Auditor(run)
    run.run(requests, recorder=auditor)
    auditor.check()
    assert len(run.records) == len(requests)
    run.inner.check_integrity()

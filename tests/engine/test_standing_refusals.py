"""A head of the queue that was refused is not asked for again while the answer must be the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import (
    ALLOCATORS,
    Setup,
    SimulatedRun,
    branching,
    random_requests,
    request,
)

from allocators.base import Allocation, KVCacheAllocator
from allocators.discovery import available
from allocators.paged import Paged
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.request import Request
from harness.engine.simulated_executor import SimulatedExecutor

STANDING = [(name, options) for name, options in ALLOCATORS if available()[name].refusals_stand]


def asked_at_every_step(cls: type[KVCacheAllocator]) -> type[KVCacheAllocator]:
    """The same strategy without the promise, which a subclass does not inherit."""
    asked: type[KVCacheAllocator] = type(f"Asked{cls.__name__}", (cls,), {})
    assert cls.refusals_stand and not asked.refusals_stand
    return asked


class Recording(SimulatedExecutor):
    """Keeps every plan."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> StepOutcome:
        self.plans.append(plan)
        return super().execute(plan)


def decided(setup: Setup, requests: Sequence[Request], closed_loop: int | None) -> Any:
    executor = Recording(1.0, vocab_size=50)
    run = SimulatedRun(setup, executor).run(requests, closed_loop)
    chunks = [plan.chunks for plan in executor.plans]  # which pages they lie in: see below
    sink = run.recorder.sink
    steps = [step._replace(allocator_us=0.0, host_us=0.0, device_us=0.0) for step in sink.steps]
    return chunks, steps, sink.entries, {r.request_id: str(r) for r in sink.requests}


@pytest.mark.parametrize(("allocator", "options"), STANDING)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    branches=st.booleans(),
    expected=st.sampled_from(["none", "max", "pow2", "oracle", "predicted"]),
    schedule=st.sampled_from(["mixed_chunked", "mixed_unchunked", "prefill_first", "static"]),
    preemption=st.sampled_from(["recompute", "swap"]),
    watermark=st.sampled_from([0.0, 0.2]),
    closed_loop=st.sampled_from([None, 5]),
)
def test_decisions_are_those_of_asking_at_every_step(
    allocator: str,
    options: dict[str, Any],
    seed: int,
    branches: bool,
    closed_loop: int | None,
    **fields: Any,
) -> None:
    """A group's admission that is given up half-way puts pages back in another order, so it may lie
    elsewhere where it was not asked for in between; to buddies that may make a difference."""
    requests = random_requests(seed, num_requests=14, shared_len=9, spread_s=20.0)
    if branches and options.get("fit") != "buddy":
        requests = branching(requests, seed)
    setups = [
        Setup(cls, options, num_pages=40, host_pages=40, bias=0.4, **fields)
        for cls in (available()[allocator], asked_at_every_step(available()[allocator]))
    ]
    assert decided(setups[0], requests, closed_loop) == decided(setups[1], requests, closed_loop)


class Counting(Paged):
    """Counts how often it is asked for an admission."""

    refusals_stand = True
    num_asked = 0

    def allocate(self, *arguments: Any, **named: Any) -> Allocation | None:
        self.num_asked += 1
        return super().allocate(*arguments, **named)


def test_who_waits_is_asked_for_when_somebody_leaves() -> None:
    # 8 and 2 of 14 pages are taken at first; the third needs 6, and waits until the first ends
    requests = [request(0, 32, 8), request(1, 8, 20), request(2, 24, 4)]
    run = SimulatedRun(Setup(Counting, num_pages=14)).run(requests)
    refused = [step for step in run.recorder.sink.steps if step.refusal]
    assert len(refused) >= 5
    assert isinstance(run.inner, Counting)
    assert run.inner.num_asked == len(requests) + 1

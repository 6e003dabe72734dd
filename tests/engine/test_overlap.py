"""A step decided ahead of its predecessor's outcome is the step that would have been decided after
it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from simulated_run import (
    ALLOCATORS,
    Setup,
    SimulatedRun,
    branching,
    random_requests,
    request,
)

from harness.engine.arrivals import RequestSource
from harness.engine.engine import Engine
from harness.engine.plan import PENDING_TOKEN, StepOutcome, StepPlan
from harness.engine.request import Request, Workload
from harness.engine.scheduling.beam_search import BeamParams
from harness.engine.simulated_executor import SimulatedExecutor
from harness.measure.recorder import RunRecorder


class Submitted(NamedTuple):
    """number: of the step."""

    number: int
    outcome: StepOutcome


class LateOutcomes:
    """Tells what came of a step only when it is asked, and whether anybody was ahead."""

    works_apart = True

    def __init__(self) -> None:
        self._inner = SimulatedExecutor(1.0, vocab_size=50)
        self.plans: list[StepPlan] = []
        self.num_in_flight = self.num_ahead = 0
        self._landed = 0

    def execute(self, plan: StepPlan) -> StepOutcome:
        return self.result(self.submit(plan))

    def submit(self, plan: StepPlan) -> Submitted:
        self.num_in_flight += 1
        assert self.num_in_flight <= 2
        self.num_ahead += self.num_in_flight == 2
        self.plans.append(plan)
        return Submitted(len(self.plans) - 1, self._inner.execute(plan))

    def result(self, pending: Submitted) -> StepOutcome:
        assert pending.number == self._landed  # in order
        self.num_in_flight -= 1
        self._landed += 1
        return pending.outcome._replace(device_s=0.25, waited_s=0.0)

    def close(self) -> None:
        return None


def run(
    setup: Setup, requests: Sequence[Request], overlap: bool, closed_loop: int | None = None
) -> tuple[SimulatedRun, LateOutcomes]:
    executor = LateOutcomes()
    made = SimulatedRun(setup, executor)
    engine = Engine(
        made.scheduler,
        executor,
        made.clock,
        made.recorder,
        made.limits,
        made.allocator,
        overlap=overlap,
    )
    engine.run(RequestSource(Workload("test", tuple(requests), "test", closed_loop)))
    made.recorder.close()
    assert executor.num_in_flight == 0
    return made, executor


def settled(plans: list[StepPlan], like: list[StepPlan]) -> list[StepPlan]:
    """`plans`, with the tokens that had not come yet as they stand in `like`."""
    filled = []
    for plan, other in zip(plans, like, strict=True):
        chunks = [
            chunk._replace(token_ids=[*chunk.token_ids[:-1], theirs.token_ids[-1]])
            if chunk.token_ids[-1] == PENDING_TOKEN
            else chunk._replace(token_ids=list(chunk.token_ids))
            for chunk, theirs in zip(plan.chunks, other.chunks, strict=True)
        ]
        assert all(PENDING_TOKEN not in chunk.token_ids for chunk in chunks)
        filled.append(plan._replace(chunks=tuple(chunks)))
    return filled


def listed(plans: list[StepPlan]) -> list[StepPlan]:
    return settled(plans, plans)


def compare(setup: Setup, requests: Sequence[Request], closed_loop: int | None = None) -> int:
    """Run with and without; how many steps were ahead."""
    (plain, behind), (ahead, late) = (
        run(setup, requests, overlap, closed_loop) for overlap in (False, True)
    )
    assert behind.num_ahead == 0
    assert settled(late.plans, behind.plans) == listed(behind.plans)
    mine, theirs = ahead.recorder, plain.recorder
    assert mine.sink.entries == theirs.sink.entries
    assert len(mine.sink.requests) == len(theirs.sink.requests)
    for one, other in zip(mine.sink.steps, theirs.sink.steps, strict=True):
        assert one.duration_s == pytest.approx(other.duration_s)
        assert one.device_us == 250_000
        assert one._replace(**TIMES) == other._replace(**TIMES)
    by_id = plain.records
    for record in mine.sink.requests:
        other = by_id[record.request_id]
        assert record.chosen_ids == other.chosen_ids
        assert record.finish_s == pytest.approx(other.finish_s, nan_ok=True)
        assert record.itl_ms == pytest.approx(other.itl_ms)
        assert record.num_preemptions == other.num_preemptions
        assert record.stalled_s >= other.stalled_s - 1e-9  # stopped when that was decided
        assert (record.stalled_s > 0) == (other.stalled_s > 0)
    return late.num_ahead


TIMES = {"start_s": 0, "duration_s": 0, "allocator_us": 0, "host_us": 0}


def setups(allocator: str, options: dict[str, Any], rng: random.Random) -> Setup:
    return Setup(
        allocator,
        options,
        num_pages=rng.choice([24, 40]),
        schedule=rng.choice(["mixed_chunked", "mixed_unchunked", "prefill_first", "static"]),
        preemption=rng.choice(["recompute", "swap"]),
        host_pages=rng.choice([0, 40]),
        token_budget=rng.choice([16, 64]),
        expected=rng.choice(["none", "max", "oracle"]),
        watermark=rng.choice([0.0, 0.1]),
        windows=rng.choice([(None,), (None,), (6,)]),
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_decisions_are_the_same(allocator: str, options: dict[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, shared_len=9)
    if seed % 2:  # lengths forced, ids not
        requests = [
            replace(r, forced_ids=None, forced_len=len(r.forced_ids or ())) for r in requests
        ]
    if seed % 4 == 3:
        requests = branching(requests, seed)
    num_ahead = compare(setups(allocator, options, rng), requests)
    ids_matter = seed % 2 and allocator == "paged_prefix"
    assert (num_ahead == 0) if ids_matter else (num_ahead > 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_closed_loop_is_answered_before_the_next_step(seed: int) -> None:
    requests = random_requests(seed)
    assert compare(Setup(num_pages=40), requests, closed_loop=3) > 0


def test_memory_that_runs_out_preempts_alike() -> None:
    requests = [request(i, 12, 30, forced_ids=None, forced_len=30) for i in range(6)]
    for preemption in ("recompute", "swap"):
        setup = Setup(num_pages=20, preemption=preemption, host_pages=30)
        assert compare(setup, requests) > 20
        made, _ = run(setup, requests, overlap=True)
        assert sum(record.num_preemptions for record in made.records.values()) > 2


def test_an_end_of_sequence_is_waited_for() -> None:
    requests = [request(0, 5, 6, forced_ids=None, eos_ids=frozenset({51}))]
    made, late = run(Setup(), requests, overlap=True)
    assert late.num_ahead == 0 and made.records[0].num_output_tokens == 6


def test_beams_are_waited_for() -> None:
    beam = BeamParams(3)
    requests = [request(0, 5, 6, beam=beam, forced_ids=None, forced_len=6)]
    made, late = run(Setup(), requests, overlap=True)
    assert late.num_ahead == 0 and made.records[0].output_len == 6


def test_steps_lie_side_by_side_in_time() -> None:
    made, late = run(Setup(), [request(i, 9, 12) for i in range(4)], overlap=True)
    steps = made.recorder.sink.steps
    assert late.num_ahead > 8
    for step, following in pairwise(steps):
        assert following.start_s == pytest.approx(step.start_s + step.duration_s)


def test_an_allocator_sees_its_time_in_the_step_that_it_was_for() -> None:
    made, _ = run(Setup(), [request(i, 9, 12) for i in range(4)], overlap=True)
    recorder: RunRecorder = made.recorder
    assert all(step.allocator_us > 0 for step in recorder.sink.steps)
    assert sum(s.allocator_us for s in recorder.sink.steps) <= made.page_book.host_ns / 1e3

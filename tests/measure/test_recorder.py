from __future__ import annotations

import random
from typing import Any

import pytest
from brute_force import Auditor
from simulated_run import ALLOCATORS, Setup, SimulatedRun, random_requests, request

from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.request import Request
from harness.measure.memory_map import MemoryMap

EOS = 99


class Ends:
    """Chooses end-of-sequence at given output lengths; knows which sequence is which request."""

    def __init__(self, lengths: dict[int, int]) -> None:
        self._lengths = lengths

    def execute(self, plan: StepPlan) -> StepOutcome:
        chosen = [
            EOS if chunk.output_position + 1 == self._lengths[chunk.seq_id] else 1
            for chunk in plan.chunks
            if chunk.draws
        ]
        return StepOutcome(chosen, (), 1.0)

    def close(self) -> None:
        return None


@pytest.mark.parametrize("expected", ["none", "max"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_free_outputs_give_the_ledger_of_forced_ones(
    allocator: str, options: dict[str, Any], seed: int, expected: Any
) -> None:
    rng = random.Random(seed)
    prompts = [rng.randint(1, 30) for _ in range(12)]
    lengths = {i: rng.randint(1, 20) for i in range(12)}
    forced = [
        request(i, prompts[i], max_tokens=25, forced_ids=None, forced_len=lengths[i])
        for i in range(12)
    ]
    free = [
        request(i, prompts[i], max_tokens=25, forced_ids=None, eos_ids=frozenset({EOS}))
        for i in range(12)
    ]
    setup = {"num_pages": 30, "page_size": 4, "expected": expected, "options": options}
    known = SimulatedRun(Setup(allocator, **setup), Ends(lengths)).run(forced)
    run = SimulatedRun(Setup(allocator, deferred=True, **setup), Ends(lengths))
    auditor = Auditor(run, {i: prompts[i] + lengths[i] - 1 for i in range(12)})
    run.run(free, recorder=auditor)
    auditor.check()
    assert run.recorder.sink.entries == known.recorder.sink.entries
    assert [record.num_output_tokens for record in run.records.values()] == [
        record.num_output_tokens for record in known.records.values()
    ]


def test_a_preemption_is_recorded_in_the_step_that_follows_it() -> None:
    run = SimulatedRun(Setup(num_pages=10)).run([request(i, 12, 5) for i in range(3)])
    assert sum(step.num_preempted for step in run.recorder.sink.steps) == 1


def test_steps_count_prefill_and_decode_tokens() -> None:
    run = SimulatedRun(Setup(token_budget=8)).run([request(0, 5, 3), request(1, 10, 2)])
    counts = [(s.num_prefill_tokens, s.num_decode_tokens) for s in run.recorder.sink.steps]
    assert counts == [(8, 0), (7, 1), (0, 2)]


def test_memory_map_keeps_each_state_of_each_page() -> None:
    run = SimulatedRun(Setup(num_pages=4, page_size=4))
    memory_map = MemoryMap(period_s=0.0)
    run.recorder._memory_map = memory_map
    run.run([request(0, 7, 4), request(1, 3, 1, arrival_s=2.0)])
    frame = memory_map.frame().sort_values(["page", "from_s"])
    rows = [tuple(row) for row in frame.itertuples(index=False)]
    # page, owner, token, reserved, over_reserved, size_class, tail, from, to
    assert rows == [
        (0, 0, 4, 0, 0, 0, 0, 0.0, 4.0),
        (1, 0, 3, 1, 0, 0, 0, 0.0, 1.0),
        (1, 0, 4, 0, 0, 0, 0, 1.0, 4.0),
        (2, 0, 1, 1, 0, 0, 2, 2.0, 3.0),
        (2, 0, 2, 0, 0, 0, 2, 3.0, 4.0),
        (3, 1, 3, 0, 0, 0, 1, 2.0, 3.0),
    ]


@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_memory_map_adds_up_to_the_ledger(allocator: str, options: dict[str, Any]) -> None:
    run = SimulatedRun(Setup(allocator, options, num_pages=40))
    memory_map = MemoryMap(period_s=0.0)
    run.recorder._memory_map = memory_map
    requests: list[Request] = random_requests(3, shared_len=9, spread_s=20)
    run.run(requests)
    frame = memory_map.frame()
    for step, entry in zip(run.recorder.sink.steps, run.recorder.sink.entries, strict=True):
        now = frame[(frame.from_s <= step.start_s) & (frame.to_s > step.start_s)]
        for name in ("token", "reserved", "over_reserved", "size_class", "tail"):
            assert now[name].sum() == getattr(entry, name)


def test_runs_that_decide_alike_have_one_schedule_digest_wherever_their_pages_lie() -> None:
    def digest(allocator: str, num_pages: int, longer: int = 0) -> str:
        requests = [request(i, 5 + i + longer, max_tokens=9) for i in range(6)]
        setup = Setup(allocator, num_pages=num_pages, page_size=4, deferred=True)
        run = SimulatedRun(setup, Ends(dict.fromkeys(range(6), 9)))
        run.run(requests)
        return run.recorder.schedule_digest

    ample = digest("paged", 60)
    assert digest("paged_cow", 90) == digest("paged_prefix", 60) == ample
    assert len({ample, digest("paged", 12), digest("paged", 60, longer=1)}) == 3

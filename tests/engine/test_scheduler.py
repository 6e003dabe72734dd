from __future__ import annotations

from typing import Any

import pytest
from simulated_run import (
    ALLOCATORS,
    RecordingExecutor,
    Setup,
    SimulatedRun,
    random_requests,
    request,
)

from allocators.base import Allocation
from allocators.paged import Paged
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.request import SamplingParams
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.engine.scheduling.victims import VICTIM_POLICIES
from harness.engine.simulated_executor import SimulatedExecutor
from harness.measure.ledger import LedgerEntry


def run(requests: Any, **setup: Any) -> tuple[SimulatedRun, list[StepPlan]]:
    executor = RecordingExecutor(seed=0)
    finished = SimulatedRun(Setup(**setup), executor).run(requests)
    return finished, executor.plans


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(sequence, first position, tokens) of each chunk."""
    return [(chunk.seq_id, chunk.start, len(chunk.token_ids)) for chunk in plan.chunks]


def test_first_come_first_served_by_arrival_not_by_id() -> None:
    requests = [request(0, arrival_s=2.0), request(1, arrival_s=1.0), request(2, arrival_s=1.0)]
    finished, _ = run(requests, max_num_seqs=1)
    by_start = sorted(finished.records.values(), key=lambda record: record.first_scheduled_s)
    assert [record.request_id for record in by_start] == [1, 2, 0]


def test_nobody_passes_a_head_that_does_not_fit() -> None:
    big, small = request(1, 30, 2), request(2, 1, 1)
    finished, _ = run([request(0, 8, 8), big, small], num_pages=9)
    records = finished.records
    assert records[1].first_scheduled_s >= records[0].finish_s
    assert records[2].first_scheduled_s >= records[1].first_scheduled_s
    assert records[1].waited_for_room and not records[0].waited_for_room


def test_prompts_are_split_to_fill_the_budget_beside_decodes() -> None:
    _, plans = run([request(0, 5, 3), request(1, 10, 2)], token_budget=8)
    assert [shape(plan) for plan in plans] == [
        [(0, 0, 5), (1, 0, 3)],
        [(0, 5, 1), (1, 3, 7)],
        [(0, 6, 1), (1, 10, 1)],
    ]
    assert [len(chunk.draws) for plan in plans for chunk in plan.chunks] == [1, 0, 1, 1, 1, 1]


def test_unchunked_prompts_are_whole_and_one_joins_whatever_its_length() -> None:
    requests = [request(0, 3, 4), request(1, 4, 4), request(2, 20, 2), request(3, 8, 2)]
    _, plans = run(requests, token_budget=8, schedule="mixed_unchunked")
    assert [shape(plan) for plan in plans[:3]] == [
        [(0, 0, 3), (1, 0, 4)],
        [(0, 3, 1), (1, 4, 1), (2, 0, 20)],
        [(0, 4, 1), (1, 5, 1), (2, 20, 1), (3, 0, 8)],
    ]


def test_a_prompt_as_long_as_the_budget_is_not_held_back_by_decodes() -> None:
    requests = [request(i, 1, 50) for i in range(4)] + [request(4, 8, 2)]
    finished, _ = run(requests, token_budget=8, schedule="mixed_unchunked")
    assert finished.records[4].finish_s < finished.records[0].finish_s


@pytest.mark.parametrize("token_budget", [1, 2, 5, 33])
def test_the_budget_bounds_every_chunked_step(token_budget: int) -> None:
    requests = [request(i, 1 + 7 * i % 30, 1 + 5 * i % 11) for i in range(15)]
    _, plans = run(requests, token_budget=token_budget)
    sizes = [sum(num_tokens for _, _, num_tokens in shape(plan)) for plan in plans]
    assert max(sizes) == token_budget
    assert min(sizes) > 0


@pytest.mark.parametrize("token_budget", [8, 16])
def test_drafts_leave_a_token_of_the_budget_to_every_other_branch(token_budget: int) -> None:
    requests = [
        request(i, 12, 20, num_samples=6, sampling=SamplingParams(1.0, seed=i)) for i in range(3)
    ]
    drafts = SpeculationConfig("injected", num_tokens=4, acceptance=0.5)
    executor = SimulatedExecutor(1.0, vocab_size=50)
    sizes: list[int] = []

    def execute(plan: StepPlan) -> StepOutcome:
        sizes.append(sum(len(chunk.token_ids) for chunk in plan.chunks))
        return SimulatedExecutor.execute(executor, plan)

    executor.execute = execute  # type: ignore[method-assign]
    setup = Setup("paged_cow", num_pages=400, token_budget=token_budget, speculation=drafts)
    SimulatedRun(setup, executor).run(requests)
    assert max(sizes) == token_budget


def test_no_more_sequences_run_than_allowed() -> None:
    finished, plans = run([request(i) for i in range(10)], max_num_seqs=3)
    assert max(len(plan.chunks) for plan in plans) == 3
    assert all(step.refusal == "" for step in finished.recorder.sink.steps)


def test_head_that_is_held_back_by_the_watermark_alone_is_withheld() -> None:
    # 20 pages of 4, a fifth to be left free: after 3 pages (and one grown), 16 more would be too
    # many, without the watermark it fits
    requests = [request(0, 12, 4), request(1, 64, 1)]
    finished, _ = run(requests, num_pages=20, watermark=0.2, token_budget=100)
    first = finished.recorder.sink.entries[0]
    assert finished.recorder.sink.steps[0].refusal == "withheld"
    assert first.withheld == 17 * 4 and first.stranded == first.free == 0
    without, _ = run(requests, num_pages=20, token_budget=100)
    assert without.recorder.sink.steps[0].refusal == ""


def test_watermark_holds_nobody_back_in_an_idle_pool_nor_reservations() -> None:
    finished, _ = run([request(0, 64, 1)], num_pages=16, watermark=0.5)
    assert finished.records[0].status == "finished"
    reserved, _ = run(
        [request(0, 12, 4), request(1, 44, 1)],
        allocator="contiguous",
        options={"fit": "first_fit"},
        num_pages=16,
        watermark=0.5,
        expected="max",
    )
    assert reserved.recorder.sink.steps[0].refusal == ""


def test_head_larger_than_what_is_free_is_refused_as_full() -> None:
    finished, _ = run([request(0, 40, 4), request(1, 64, 1)], num_pages=20, token_budget=200)
    entry = finished.recorder.sink.entries[0]
    assert finished.recorder.sink.steps[0].refusal == "full"
    assert entry.free == 10 * 4 and entry.stranded == entry.withheld == 0


def unplaced_entries(ends_first: tuple[int, int], **fields: Any) -> list[LedgerEntry]:
    """Of steps in which eight pages are free and none of them is given to a head that needs eight.

    Before, sixteen pages were filled by four requests of four pages, two of which ended; and
    before these six small ones were served, so that the strategy has shown how it places.
    """
    lengths = [(16, 1) if i in ends_first else (12, 5) for i in range(4)]
    requests = [request(i, 7, 2) for i in range(6)]
    for i, (prompt, output) in enumerate([*lengths, (32, 1)], start=6):
        requests.append(request(i, prompt, output, arrival_s=20.0))
    options = {"num_pages": 16, "expected": "oracle", "token_budget": 200}
    finished, _ = run(requests, **(options | fields))
    records = finished.recorder.sink
    return [
        entry
        for step, entry in zip(records.steps, records.entries, strict=True)
        if step.refusal == "unplaced"
    ]


@pytest.mark.parametrize("fit", ["buddy", "first_fit", "best_fit"])
def test_free_pages_that_lie_apart_are_stranded(fit: str) -> None:
    entries = unplaced_entries((0, 2), allocator="contiguous", options={"fit": fit})
    assert entries and all(entry.stranded == 8 * 4 for entry in entries)
    assert not any(entry.free or entry.refused for entry in entries)


def test_a_run_that_a_buddy_cannot_use_is_misaligned_and_not_stranded() -> None:
    entries = unplaced_entries((1, 2), allocator="contiguous", options={"fit": "buddy"})
    assert entries and all(entry.refused == entry.misaligned == 8 * 4 for entry in entries)
    assert not any(entry.free or entry.stranded for entry in entries)
    assert not unplaced_entries((1, 2), allocator="contiguous", options={"fit": "first_fit"})


class LeavesHalfFree(Paged):
    """Refuses newcomers who would take the last half of the pool from those that run."""

    name = "leaves_half_free"

    def allocate(self, seq_id: int, token_ids: Any, *rest: Any) -> Allocation | None:
        half = self.pool.num_pages // 2
        if self.sequences and self.pool.num_free - self.pages_for(len(token_ids)) < half:
            return None
        return super().allocate(seq_id, token_ids, *rest)


class AndSaysItNeedsAll(LeavesHalfFree):
    def pages_needed(self, token_ids: Any, expected_len: int) -> int:
        return self.pool.num_pages


def test_what_a_strategy_says_it_needs_decides_no_class() -> None:
    """A paged strategy strands nothing: what it leaves free is its policy, whatever it says."""
    entries = unplaced_entries((0, 2), allocator=LeavesHalfFree, expected="none")
    assert entries and any(entry.refused for entry in entries)
    assert not any(entry.stranded or entry.misaligned for entry in entries)
    assert entries == unplaced_entries((0, 2), allocator=AndSaysItNeedsAll, expected="none")


def test_the_latest_goes_first_and_loses_no_output() -> None:
    # 3 sequences of 4 pages each in 9 pages: 12 tokens of prompt, 4 outputs each
    requests = [request(i, 12, 5) for i in range(3)]
    finished, plans = run(requests, num_pages=10, page_size=4)
    records = finished.records
    assert [records[i].num_preemptions for i in range(3)] == [0, 0, 1]
    assert records[2].recomputed_tokens == 12
    assert [records[i].num_output_tokens for i in range(3)] == [5, 5, 5]
    assert all(len(record.chosen_ids) == 5 for record in records.values())
    # computed again in one go: the prompt and the output so far
    assert (2, 0, 13) in [chunk for plan in plans for chunk in shape(plan)]


def test_a_step_that_preempts_is_saturated() -> None:
    finished, _ = run([request(i, 12, 5) for i in range(3)], num_pages=10)
    steps = finished.recorder.sink.steps
    assert [step.refusal for step in steps if step.num_preempted] == ["full"]


def test_preempted_sequences_come_back_in_their_order() -> None:
    # 33 pages would be needed in the end: the two behind the first go, latest first
    requests = [request(0, 4, 40), request(1, 4, 40), request(2, 4, 40)]
    finished, _ = run(requests, num_pages=12, page_size=4)
    records = finished.records
    assert records[0].finish_s < records[1].finish_s < records[2].finish_s
    assert records[0].num_preemptions == 0 < records[2].num_preemptions


def test_sequence_that_preempts_itself_alone_is_placed_again_at_once() -> None:
    # buddy: the earlier sequence keeps the block to the right occupied until it ends; then the
    # later one, alone, sits where it cannot grow, goes, and gets a larger block
    requests = [request(0, 4, 1), request(1, 4, 40)]
    finished, plans = run(
        requests, allocator="contiguous", options={"fit": "buddy"}, num_pages=16, page_size=4
    )
    records = finished.records
    assert records[1].num_output_tokens == 40
    assert sum(step.num_preempted for step in finished.recorder.sink.steps) == sum(
        record.num_preemptions for record in records.values()
    )
    assert all(plan.chunks for plan in plans)


def test_prompt_that_can_never_fit_is_refused_with_sizes_and_the_others_go_on() -> None:
    finished, _ = run([request(0), request(1, 60, 10), request(2)], num_pages=16, page_size=4)
    records = finished.records
    assert [records[i].status for i in range(3)] == ["finished", "refused", "finished"]
    assert (
        "needs up to 72 token slots (prompt 60 + output 10), the pool has 64" in records[1].reason
    )
    assert records[0].finish_s == records[2].finish_s


@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_pool_smaller_than_any_sequence_refuses_all_alike(
    allocator: str, options: dict[str, Any]
) -> None:
    requests = [request(i, 4, 2) for i in range(3)]
    finished, plans = run(requests, allocator=allocator, options=options, num_pages=1)
    assert [record.status for record in finished.records.values()] == ["refused"] * 3
    assert not plans


def test_buddy_pool_whose_largest_block_is_too_small_refuses_at_once_and_goes_on() -> None:
    # 15 pages are blocks of 8, 4, 2 and 1: ten pages fit the pool, not a block
    requests = [request(0, 4, 20), request(1, 37, 4), request(2, 4, 2)]
    finished, _ = run(
        requests, allocator="contiguous", options={"fit": "buddy"}, num_pages=15, expected="oracle"
    )
    records = finished.records
    assert [records[i].status for i in range(3)] == ["finished", "refused", "finished"]
    assert "asked for 40 token slots" in records[1].reason
    assert "at most 32 of the pool's 60" in records[1].reason
    assert records[2].finish_s < records[0].finish_s, "the refused one held the queue up"


def test_sequence_that_outgrows_the_largest_block_ends_refused() -> None:
    finished, _ = run(
        [request(0, 4, 50)], allocator="contiguous", options={"fit": "buddy"}, num_pages=15
    )
    assert finished.records[0].status == "refused"
    assert "asked for 33 token slots (prompt 4, 33 known)" in finished.records[0].reason


def test_positions_beyond_the_model_are_refused() -> None:
    finished, _ = run([request(0, 10, 6), request(1, 10, 7)], max_positions=16)
    assert [finished.records[i].status for i in range(2)] == ["finished", "refused"]
    assert "exceed the model's 16 positions" in finished.records[1].reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request(0, 0, 3), "prompt of 0 tokens"),
        (request(0, 3, 0, forced_ids=None), "at most 0 output tokens"),
        (request(0, 3, 9, max_tokens=5), "forces 9 output tokens: not between 1 and 5"),
        (request(0, 3, 2, forced_ids=None, forced_len=0), "forces 0 output tokens"),
    ],
)
def test_requests_that_make_no_sense_are_refused(bad: Any, reason: str) -> None:
    finished, _ = run([bad, request(1)])
    assert finished.records[0].status == "refused"
    assert reason in finished.records[0].reason
    assert finished.records[1].status == "finished"


def test_no_requests_no_steps() -> None:
    finished, plans = run([])
    assert not plans and not finished.recorder.sink.steps and not finished.recorder.sink.requests


def shared(request_id: int, prefix_id: int, tail: int, output: int, **fields: Any) -> Any:
    """A request whose first ten tokens are those of all that declare `prefix_id`."""
    prompt = [*range(-10 * prefix_id - 10, -10 * prefix_id), *range(request_id, request_id + tail)]
    declared = {"shared_prefix_id": prefix_id, "shared_prefix_len": 10}
    return request(request_id, prompt, output, **(declared | fields))


def test_a_declared_prefix_is_computed_once_and_forked() -> None:
    requests = [shared(i, 0, 3, 4, arrival_s=2.0 * i) for i in range(3)]
    finished, plans = run(requests, allocator="paged_cow")
    records = finished.records
    assert [records[i].num_cached_tokens for i in range(3)] == [0, 10, 10]
    # the prefix ends within a page: each fork copies that one before it writes
    assert sum(len(plan.copies) for plan in plans) >= 2
    held = list(finished.inner.sequences)
    assert held == [-1] and finished.inner.sequences[-1].length == 10


def test_a_prefix_that_is_the_whole_prompt_cannot_be_started_from() -> None:
    requests = [shared(0, 0, 3, 2), shared(1, 0, 0, 2, arrival_s=50.0)]
    finished, _ = run(requests, allocator="paged_cow")
    assert finished.records[1].num_cached_tokens == 0
    assert finished.records[1].status == "finished"


def test_prefixes_held_for_nobody_running_make_way_before_anybody_waits() -> None:
    # three prefixes of 3 pages are held in 12 pages when a prompt of 8 pages comes
    requests = [shared(i, i, 1, 2, arrival_s=20.0 * i) for i in range(3)]
    finished, _ = run(
        [*requests, request(3, 32, 1, arrival_s=100.0)], allocator="paged_cow", num_pages=12
    )
    assert not finished.records[3].waited_for_room
    # 8 + 3 pages: one prefix could stay, the one held last
    assert [state.length for state in finished.inner.sequences.values()] == [10]


def test_held_prefixes_make_way_for_growth_before_anybody_is_preempted() -> None:
    requests = [shared(i, i, 1, 2, arrival_s=20.0 * i) for i in range(3)]
    growing = [request(3, 4, 16, arrival_s=100.0), request(4, 4, 16, arrival_s=100.0)]
    finished, _ = run([*requests, *growing], allocator="paged_cow", num_pages=12)
    assert [finished.records[i].num_preemptions for i in (3, 4)] == [0, 0]


def test_a_prefix_in_use_is_kept_while_its_users_run() -> None:
    requests = [shared(i, 0, 2, 12, arrival_s=2.0 * (i > 0)) for i in range(5)]
    finished, _ = run(requests, allocator="paged_cow", num_pages=12)
    records = finished.records
    assert all(records[i].num_cached_tokens == 10 for i in range(1, 5))
    assert all(record.num_output_tokens == 12 for record in records.values())


def test_what_is_found_cached_only_on_return_counts_as_cached() -> None:
    # twins arrive together, so the second finds nothing; preempted after 10 of its 40 tokens, it
    # finds 39 of them, of which 29 it had never computed
    prompt = range(7000, 7040)
    requests = [request(0, 4, 8), request(1, prompt, 2), request(2, prompt, 2)]
    finished, plans = run(requests, allocator="paged_prefix", num_pages=21, token_budget=54)
    record = finished.records[2]
    computed = [chunk for plan in plans for chunk in shape(plan) if chunk[0] == 2]
    assert record.num_preemptions == 1 and computed[0] == (2, 0, 10)
    assert (
        sum(chunk[2] for chunk in computed)
        == 41 + record.recomputed_tokens - record.num_cached_tokens
    )
    assert record.num_cached_tokens == 29


def test_a_preempted_sequence_goes_before_those_that_never_ran() -> None:
    requests = [request(0, 12, 9), request(1, 12, 9), request(2, 24, 1, arrival_s=0.5)]
    finished, _ = run(requests, num_pages=8)
    records = finished.records
    assert records[1].num_preemptions == 1
    assert records[1].finish_s <= records[2].first_scheduled_s


def test_a_refused_head_leaves_a_prefix_that_is_in_use() -> None:
    # 9 of 12 pages are wanted: the prefix's 3 do not stand in the way, its user does
    waits = request(1, 36, 1, arrival_s=0.1)
    requests = [shared(0, 0, 2, 20), waits, shared(2, 0, 2, 2, arrival_s=0.2)]
    finished, _ = run(requests, allocator="paged_cow", num_pages=12)
    assert finished.records[1].waited_for_room
    assert finished.records[2].num_cached_tokens == 10
    assert list(finished.inner.sequences) == [-1], "it was dropped and held again"


def test_a_fork_of_a_prefix_respects_the_watermark() -> None:
    # of 20 pages 4 are to stay free: the prefix's user fits beside the other but for that
    requests = [shared(0, 0, 2, 60), shared(1, 0, 40, 1, arrival_s=1.5)]
    finished, _ = run(requests, allocator="paged_cow", num_pages=20, watermark=0.4)
    assert "withheld" in {step.refusal for step in finished.recorder.sink.steps}
    freely, _ = run(requests, allocator="paged_cow", num_pages=20)
    assert freely.records[1].first_scheduled_s < finished.records[1].first_scheduled_s


def test_pages_that_branches_will_write_to_first_are_not_given_to_the_next_group() -> None:
    # two pages a prompt; three of the four samples then copy the page that they write to
    requests = [request(i, 6, 2, num_samples=4, forced_ids=None, forced_len=2) for i in range(2)]
    too_few, plans = run(requests, allocator="paged_cow", num_pages=9)
    assert shape(plans[0]) == [(0, 0, 6)]
    assert too_few.recorder.sink.steps[0].refusal == "full"
    assert sum(record.num_preemptions for record in too_few.recorder.sink.requests) == 0
    _, plans = run(requests, allocator="paged_cow", num_pages=10)
    assert shape(plans[0]) == [(0, 0, 6), (4, 0, 6)]


def test_swaps_as_far_as_the_host_pool_goes() -> None:
    requests = random_requests(3, num_requests=30)
    setup = Setup("paged", num_pages=24, page_size=4, preemption="swap", host_pages=8)
    swapped = SimulatedRun(setup).run(requests)
    swaps = sum(record.num_swaps for record in swapped.recorder.sink.requests)
    preemptions = sum(record.num_preemptions for record in swapped.recorder.sink.requests)
    assert 0 < swaps < preemptions
    saved = sum(step.saved_pages for step in swapped.recorder.sink.steps)
    assert saved == sum(step.restored_pages for step in swapped.recorder.sink.steps) >= swaps
    assert all(
        record.stalled_s > 0 for record in swapped.recorder.sink.requests if record.num_swaps
    )
    assert swapped.scheduler._memory.host.num_used == 0


def test_a_static_batch_lets_nobody_in_until_its_last_has_ended() -> None:
    requests = [request(i, prompt=4, output=2 + 3 * (i % 3)) for i in range(9)]
    setup = {"num_pages": 100, "page_size": 4, "schedule": "static", "batch_size": 3}
    run = SimulatedRun(Setup("paged", **setup)).run(requests)
    starts = {i: record.first_scheduled_s for i, record in run.records.items()}
    ends = {i: record.finish_s for i, record in run.records.items()}
    for batch in range(3):
        members = range(3 * batch, 3 * batch + 3)
        assert len({starts[i] for i in members}) == 1
        if batch:
            assert starts[3 * batch] == max(ends[i] for i in range(3 * batch - 3, 3 * batch))
    by_length = SimulatedRun(Setup("paged", batch_order="length", **setup)).run(requests)
    assert max(r.finish_s for r in by_length.records.values()) < max(ends.values())
    largest = SimulatedRun(Setup("paged", **(setup | {"batch_size": None}))).run(requests)
    assert len({record.first_scheduled_s for record in largest.records.values()}) == 1


def test_prefill_first_computes_prompts_in_steps_of_their_own() -> None:
    executor = RecordingExecutor(0)
    requests = [request(i, prompt=6, output=5, arrival_s=0.7 * i) for i in range(6)]
    setup = Setup("paged", num_pages=100, schedule="prefill_first", token_budget=12)
    SimulatedRun(setup, executor).run(requests)
    for plan in executor.plans:
        assert len({chunk.output_position > 0 for chunk in plan.chunks}) == 1


@pytest.mark.parametrize(
    ("policy", "wanted"), [("latest", 3), ("longest", 1), ("least_progress", 2), ("cheapest", 0)]
)
def test_the_victim_is_who_the_policy_says(policy: Any, wanted: int) -> None:
    # known tokens, computed ones, outputs; where two are alike, the one admitted last goes
    running = []
    for index, (known, computed, outputs) in enumerate(
        [(9, 2, 5), (30, 9, 4), (8, 8, 1), (9, 8, 3)]
    ):
        group = SequenceGroup(index, request(index, prompt=known, output=9), 0.0)
        group.live[0].num_computed_tokens = computed
        group.live[0].token_s = [0.0] * outputs
        running.append(group)
    assert VICTIM_POLICIES[policy](running) is running[wanted]
    assert VICTIM_POLICIES[policy](running[:1] * 2 + running[:1]) is running[0]


@pytest.mark.parametrize("victim", VICTIM_POLICIES)
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_every_victim_policy_serves_everybody(
    allocator: str, options: dict[str, Any], preemption: str, victim: Any
) -> None:
    requests = random_requests(5, num_requests=30, shared_len=9)
    setup = Setup(
        allocator, options, num_pages=24, preemption=preemption, host_pages=12, victim=victim
    )
    run = SimulatedRun(setup).run(requests)
    assert all(record.status == "finished" for record in run.recorder.sink.requests)
    run.inner.check_integrity()

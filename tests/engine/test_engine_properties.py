"""What holds for every workload under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import ALLOCATORS, RecordingExecutor, Setup, SimulatedRun, random_requests

from harness.engine.plan import StepPlan
from harness.engine.request import Request

SETUPS = st.builds(
    lambda slots, page_size, **fields: {
        "num_pages": -(-slots // page_size),
        "page_size": page_size,
        **fields,
    },
    slots=st.integers(60, 250),
    page_size=st.sampled_from([1, 2, 4, 16]),
    schedule=st.sampled_from(["mixed_chunked", "mixed_unchunked"]),
    token_budget=st.integers(1, 60),
    max_num_seqs=st.sampled_from([1, 4, 100]),
    watermark=st.sampled_from([0.0, 0.05, 0.3]),
    expected=st.sampled_from(["none", "none", "max", "pow2", "oracle", "predicted"]),
    bias=st.sampled_from([0.3, 1.0]),
)
REQUESTS = st.builds(
    random_requests,
    st.integers(0, 10**6),
    num_requests=st.integers(0, 15),
    max_output=st.sampled_from([5, 60]),
    shared_len=st.sampled_from([0, 13]),
    chat=st.booleans(),
    spread_s=st.sampled_from([0.0, 30.0]),
)


@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
@settings(max_examples=40, deadline=None)
@given(setup=SETUPS, requests=REQUESTS, closed_loop=st.sampled_from([None, 1, 5]))
def test_every_request_is_answered_in_full_or_refused(
    allocator: str,
    options: dict[str, Any],
    setup: dict[str, Any],
    requests: list[Request],
    closed_loop: int | None,
) -> None:
    executor = RecordingExecutor(seed=1)
    run = SimulatedRun(Setup(allocator, options, **setup), executor)
    run.run(requests, closed_loop)
    assert sorted(run.records) == [request.request_id for request in requests]
    assert len(run.recorder.sink.requests) == len(requests)
    for asked in requests:
        record = run.records[asked.request_id]
        if record.status == "finished":
            assert record.num_output_tokens == asked.true_output_len == len(record.chosen_ids)
            assert len(record.itl_ms) == record.num_output_tokens - 1
            assert record.arrival_s <= record.first_scheduled_s < record.first_token_s
            assert record.first_token_s <= record.finish_s
            assert record.reason == ""
        else:
            assert record.reason
    check_pool_is_given_back(run)
    check_tokens_computed(run, executor.plans)


def check_pool_is_given_back(run: SimulatedRun) -> None:
    run.inner.check_integrity()
    assert all(seq_id < 0 for seq_id in run.inner.sequences), "only held prefixes may be left"
    held = {page for seq_id in run.inner.sequences for page in run.inner.block_table(seq_id)}
    assert run.inner.usage().mapped == len(held)


def check_tokens_computed(run: SimulatedRun, plans: list[StepPlan]) -> None:
    """Tokens computed are those needed and those lost to preemption, less those found cached."""
    chunks = [chunk for plan in plans for chunk in plan.chunks]
    total = sum(len(chunk.token_ids) for chunk in chunks)
    records = run.recorder.sink.requests
    steps = run.recorder.sink.steps
    assert total == sum(step.num_prefill_tokens + step.num_decode_tokens for step in steps)
    if any(record.status == "refused" for record in records):
        return  # what a sequence refused on the way had computed is in no record
    needed = sum(record.num_prompt_tokens + record.num_output_tokens - 1 for record in records)
    recomputed = sum(record.recomputed_tokens for record in records)
    cached = sum(record.num_cached_tokens for record in records)
    assert total == needed + recomputed - cached
    assert sum(step.num_preempted for step in steps) == sum(r.num_preemptions for r in records)

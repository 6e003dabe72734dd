from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import request

from allocators.page_pool import PagePool
from allocators.paged import Paged
from harness.engine.request import Request
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from harness.engine.scheduling.sequence import SequenceGroup

REQUESTS = st.builds(
    lambda request_id, prompt, output, slack: request(
        request_id, prompt, output, max_tokens=output + slack
    ),
    st.integers(0, 500),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(0, 200),
)
KINDS = ("max", "pow2", "oracle", "predicted")


def test_each_estimate_of_a_prompt_of_40_with_25_of_at_most_100_outputs() -> None:
    asked = request(0, 40, 25, max_tokens=100)
    lengths = {kind: LengthEstimator(kind).expected_len(asked) for kind in (*KINDS, "none")}
    # the last output token's KV is never written, so 40 + 25 - 1 positions are computed
    assert lengths == {"max": 139, "pow2": 72, "oracle": 64, "predicted": 64, "none": 0}


@given(REQUESTS, st.floats(0.1, 4), st.floats(0, 2))
def test_no_estimate_leaves_prompt_and_bound(asked, bias: float, spread: float) -> None:  # type: ignore[no-untyped-def]
    for kind in KINDS:
        length = LengthEstimator(kind, bias, spread).expected_len(asked)
        assert len(asked.prompt_ids) <= length <= asked.max_len
    final_len = len(asked.prompt_ids) + len(asked.forced_ids) - 1
    assert LengthEstimator("oracle").expected_len(asked) == final_len
    assert LengthEstimator("predicted").expected_len(asked) == final_len
    assert final_len <= LengthEstimator("pow2").expected_len(asked) <= asked.max_len


@given(REQUESTS, st.sampled_from(KINDS), st.floats(0.1, 1), st.data())
def test_a_revised_estimate_holds_what_there_is(asked, kind, bias: float, data) -> None:  # type: ignore[no-untyped-def]
    estimator = LengthEstimator(kind, bias)
    final_len = len(asked.prompt_ids) + len(asked.forced_ids) - 1
    current_len = data.draw(st.integers(len(asked.prompt_ids), final_len))
    revised = estimator.revised_len(asked, current_len)
    assert current_len <= revised <= asked.max_len
    if estimator.expected_len(asked) >= current_len:
        assert revised == estimator.expected_len(asked)


def test_no_estimate_stays_none_when_revised() -> None:
    assert LengthEstimator("none").revised_len(request(0, 5, 50), 40) == 0


def test_predictions_have_the_given_median_and_spread_and_depend_on_the_request_alone() -> None:
    estimator = LengthEstimator("predicted", bias=1.5, spread=0.4, seed=3)
    asked = [request(i, 10, 1000, max_tokens=100_000) for i in range(2000)]
    factors = [math.log((estimator.expected_len(r) - 9) / 1000) for r in asked]
    assert statistics.median(factors) == pytest.approx(math.log(1.5), abs=0.04)
    assert statistics.stdev(factors) == pytest.approx(0.4, abs=0.03)
    again = LengthEstimator("predicted", bias=1.5, spread=0.4, seed=3)
    assert [again.expected_len(r) for r in asked[::-1]] == [
        estimator.expected_len(r) for r in asked[::-1]
    ]
    other = LengthEstimator("predicted", bias=1.5, spread=0.4, seed=4)
    assert other.expected_len(asked[0]) != estimator.expected_len(asked[0])


@pytest.mark.parametrize("kind", ["pow2", "oracle", "predicted"])
def test_an_output_that_ends_freely_can_only_be_bounded(kind) -> None:  # type: ignore[no-untyped-def]
    free = request(7, 5, 8, forced_ids=None)
    with pytest.raises(ValueError, match=f"allocator.expected={kind} .*request 7 ends freely"):
        LengthEstimator(kind).expected_len(free)
    assert LengthEstimator("max").expected_len(free) == 12


@pytest.mark.parametrize("kind", ["max", "pow2", "oracle"])
def test_sufficient_estimates_need_no_watermark(kind: str) -> None:
    """A paged strategy that reserved all it can need is admitted like a contiguous one."""
    pool = PagePool(10, 4)
    scheduler = Scheduler(Paged(pool), SchedulerConfig(watermark=0.5), LengthEstimator(kind))
    for seq_id in range(5):
        request = Request(seq_id, 0.0, (1, 2, 3, 4), max_tokens=5, forced_len=5)
        scheduler.add(SequenceGroup(seq_id, request, 0.0))
    step = scheduler.schedule(0.0)
    assert len(step.sequences) == 5
    assert LengthEstimator(kind).is_sufficient
    assert not LengthEstimator("predicted").is_sufficient

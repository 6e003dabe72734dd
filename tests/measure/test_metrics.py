"""Every formula on a run made by hand; docs/metrics.md names them all."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from simulated_run import Setup, SimulatedRun, random_requests, request

from harness.measure.ledger import CLASSES, LedgerEntry
from harness.measure.metrics import (
    METRIC_NAMES,
    Metrics,
    PoolFacts,
    ServiceLevel,
    _is_memory_bound,
    compute_metrics,
)
from harness.measure.records import (
    RequestRecord,
    StepRecord,
    refused_record,
    requests_frame,
    steps_frame,
)
from harness.measure.statistics import t_interval, weighted_mean

POOL = PoolFacts(num_pages=10, page_size=4, bytes_per_token=2**20, draft_bytes_per_token=2**18)


def step(index: int, start_s: float, duration_s: float, **fields: object) -> StepRecord:
    counts, times = (0, 0, 0, 1, 0, 0, 0, 0, 0), (10.0, 0.0, 0.0)
    defaults = StepRecord(index, start_s, duration_s, *counts, *times, 0, "")
    return defaults._replace(**fields)  # type: ignore[arg-type]


def entry(**slots: int) -> LedgerEntry:
    """The classes given, the rest of 40 slots free."""
    empty = dict.fromkeys(LedgerEntry._fields, 0) | slots
    used = sum(empty[name] for name in CLASSES)
    return LedgerEntry(**empty)._replace(free=40 - used)


def done(request_id: int, arrival_s: float, scheduled_s: float, *token_s: float) -> RequestRecord:
    """A finished request with 10 prompt tokens, whose output tokens came at these times."""
    record = refused_record(request_id, -1, 10, arrival_s, "")
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(token_s)]
    return record._replace(
        status="finished",
        first_scheduled_s=scheduled_s,
        first_token_s=token_s[0],
        finish_s=token_s[-1],
        num_output_tokens=len(token_s),
        output_len=len(token_s),
        itl_ms=gaps,
    )


STEPS = [
    step(0, 0.0, 1.0, num_running=1),
    step(
        1, 1.0, 1.0, num_running=3, refusal="full", num_preempted=2, copied_pages=3, saved_pages=2
    ),
    step(
        2,
        2.0,
        2.0,
        num_running=2,
        refusal="unplaced",
        copied_pages=1,
        allocator_us=50.0,
        broadcast_bytes=300,
    ),
    step(3, 5.0, 1.0, num_running=1, restored_pages=1),
]
ENTRIES = [
    entry(token=8, reserved=2, mapped_pages=3, logical_pages=3),
    entry(token=20, reserved=4, over_reserved=4, tail=2, mapped_pages=8, logical_pages=10),
    entry(
        token=16,
        reserved=2,
        size_class=6,
        cached=4,
        stranded=7,
        refused=5,
        misaligned=3,
        mapped_pages=6,
        logical_pages=9,
    ),
    entry(token=4, withheld=20, dead_window=2, mapped_pages=1, logical_pages=1),
]
DRAFT_ENTRIES = [entry(token=token) for token in (4, 8, 6, 2)]
REQUESTS = [
    done(0, 0.0, 0.0, 1.0, 2.0, 4.0)._replace(
        num_cached_tokens=6,
        recomputed_tokens=5,
        num_swaps=2,
        stalled_s=1.5,
        num_drafted_tokens=8,
        num_accepted_tokens=6,
    ),
    done(1, 0.5, 1.0, 2.0),
    refused_record(2, -1, 10, 1.0, "too large"),
    done(3, 1.0, 1.0, 2.0, 4.0, 6.0)._replace(recomputed_tokens=2, stalled_s=0.25),
]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return compute_metrics(
        steps_frame(STEPS, ENTRIES, DRAFT_ENTRIES),
        requests_frame(REQUESTS),
        POOL,
        ServiceLevel(1200.0, 1800.0),
    )


EXPECTED = {
    # requests
    "num_requests": 4,
    "num_finished": 3,
    "num_refused": 1,
    "num_single_token": 1,
    "prompt_tokens": 30,
    "output_tokens": 7,
    # time: from the first arrival, at 0, to the last token, at 6
    "duration_s": 6.0,
    "last_arrival_s": 1.0,
    "drain_s": 5.0,
    "busy_share": 5 / 6,
    "requests_per_s": 3 / 6,
    "output_tokens_per_s": 7 / 6,
    "output_tokens_per_s_per_gib": 7 / 6 / (40 / 1024 * 1.25),  # and the draft model's
    # at least 0.8 x 3 run in step 1 alone; the tokens at 2.0 are its own, the one at 1.0 is not
    "steady_from_s": 1.0,
    "steady_to_s": 2.0,
    "steady_output_tokens_per_s": 3.0,
    # end to end 4000, 1500, 5000 over 3, 1, 3 tokens
    "normalised_latency_ms": (4000 / 3 + 1500 + 5000 / 3) / 3,
    "normalised_latency_p50_ms": 1500.0,
    "normalised_latency_p99_ms": 1500 + 0.98 * (5000 / 3 - 1500),
    "normalised_latency_token_weighted_ms": 10500 / 7,
    "ttft_ms": (1000 + 1500 + 1000) / 3,
    "ttft_p50_ms": 1000.0,
    "ttft_p90_ms": 1400.0,
    "ttft_p95_ms": 1450.0,
    "ttft_p99_ms": 1490.0,
    # (4000 - 1000) / 2 and (5000 - 1000) / 2; a single token has none
    "tpot_ms": 1750.0,
    "tpot_p50_ms": 1750.0,
    "tpot_p90_ms": 1950.0,
    "tpot_p95_ms": 1975.0,
    "tpot_p99_ms": 1995.0,
    # gaps 1000, 2000, 2000, 2000 pooled
    "itl_ms": 1750.0,
    "itl_p50_ms": 2000.0,
    "itl_p90_ms": 2000.0,
    "itl_p95_ms": 2000.0,
    "itl_p99_ms": 2000.0,
    "e2e_ms": 3500.0,
    "e2e_p50_ms": 4000.0,
    "e2e_p90_ms": 4800.0,
    "e2e_p95_ms": 4900.0,
    "e2e_p99_ms": 4980.0,
    "queue_delay_ms": 500 / 3,
    "queue_delay_p99_ms": 490.0,
    "goodput_requests_per_s": 1 / 6,  # the second waits too long, the fourth is too slow
    "batched_requests": (1 + 3 + 2 * 2 + 1) / 5,
    # 1.5 in the system from 1/3 to 2/3, 2 from there to the last arrival; one arrival a third
    "backlog_growth": 0.5,
    "queue_grows": False,
    # memory, weighted by durations 1, 1, 2, 1
    "pool_pages": 10,
    "pool_tokens": 40,
    "pool_bytes": 40 * 2**20,
    "utilisation": (8 + 20 + 32 + 4) / 200,
    "token_share": (8 + 20 + 32 + 4) / 200,
    "reserved_share": (2 + 4 + 4) / 200,
    "over_reserved_share": 4 / 200,
    "size_class_share": 12 / 200,
    "tail_share": 2 / 200,
    "cached_share": 8 / 200,
    "withheld_share": 20 / 200,
    "stranded_share": 14 / 200,
    "refused_share": 10 / 200,
    "misaligned_share": 6 / 200,
    "free_share": (30 + 10 + 0 + 16) / 200,
    "dead_window_share": 2 / 200,
    "token_of_mapped": 64 / (4 * (3 + 8 + 12 + 1)),
    "idle_slot_s_per_token": (200 - 64) / 7,
    "sharing_saved": 1 - (3 + 8 + 12 + 1) / (3 + 10 + 18 + 1),
    "saturated_share": 3 / 5,
    "memory_bound": True,
    # steps 1 and 2 alone: 120 slot-seconds
    "paper_token_share": (20 + 32) / 120,
    "paper_reservation_share": (4 + 4) / 120,
    "paper_internal_share": 4 / 120,
    "paper_external_share": (2 + 10 + 12 + 8 + 24) / 120,
    # strategy
    "prefix_hit_rate": 6 / 30,
    "cached_tokens": 6,
    "preemptions": 2,
    "swaps": 2,
    "recomputed_tokens": 7,
    "swapped_bytes": 3 * 4 * 2**20,
    "stalled_s": 1.75,
    "drafted_tokens": 8,
    "accepted_tokens": 6,
    "acceptance_rate": 0.75,
    "draft_pool_bytes": 40 * 2**18,
    "draft_utilisation": (4 * 1 + 8 * 1 + 6 * 2 + 2 * 1) / 5 / 40,
    "copied_pages": 4,
    "copied_bytes": 4 * 4 * 2**20,
    "allocator_us_per_step": 20.0,
    "broadcast_bytes_per_step": 75.0,
    "num_steps": 4,
    # of a fleet: tests/measure/test_fleet_metrics.py
    "request_imbalance": 1.0,
    "token_imbalance": 1.0,
    "busy_imbalance": 1.0,
}


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_formula(metrics: Metrics, name: str) -> None:
    assert getattr(metrics, name) == pytest.approx(EXPECTED[name], rel=1e-12)


def test_shares_make_up_the_pool_and_so_does_the_paper_view(metrics: Metrics) -> None:
    assert sum(getattr(metrics, f"{name}_share") for name in CLASSES) == pytest.approx(1.0)
    paper = [name for name in METRIC_NAMES if name.startswith("paper_")]
    assert sum(getattr(metrics, name) for name in paper) == pytest.approx(1.0)


@pytest.mark.parametrize("requests", [[], [refused_record(0, -1, 9, 0.0, "too large")]])
def test_run_without_a_finished_request_has_no_means_but_has_counts(requests: list) -> None:  # type: ignore[type-arg]
    result = compute_metrics(steps_frame([], []), requests_frame(requests), POOL, ServiceLevel())
    assert (result.num_refused, result.num_finished) == (len(requests), 0)
    assert (result.output_tokens, result.preemptions, result.memory_bound) == (0, 0, False)
    for name in ("duration_s", "ttft_ms", "tpot_p99_ms", "utilisation", "goodput_requests_per_s"):
        assert math.isnan(getattr(result, name)), name


def test_requests_of_one_token_have_no_tpot_and_no_gaps() -> None:
    run = SimulatedRun(Setup()).run([request(i, 5, 1) for i in range(3)])
    result = measure(run)
    assert result.num_single_token == 3
    assert math.isnan(result.tpot_ms) and math.isnan(result.itl_p50_ms)
    assert result.ttft_ms == result.e2e_ms == result.normalised_latency_ms == 1000.0
    assert result.goodput_requests_per_s == 3.0


def test_the_drain_says_nothing_of_the_load() -> None:
    """All at once: refused memory for 3 s of the 4 s that any request waits, then 20 s of drain."""
    steps = pd.DataFrame(
        {"start_s": [0.0, 1.0, 4.0], "duration_s": [1.0, 3.0, 20.0], "num_waiting": [1, 1, 0]}
    )
    saturated = np.array([False, True, False])
    assert _is_memory_bound(steps, saturated, last_arrival_s=0.0)
    assert not _is_memory_bound(steps, saturated, last_arrival_s=20.0)
    ample = steps.assign(num_waiting=0)
    assert not _is_memory_bound(ample, np.zeros(3, bool), last_arrival_s=0.0)


def test_run_that_never_refused_memory_has_no_paper_view() -> None:
    result = measure(SimulatedRun(Setup()).run([request(0)]))
    assert result.saturated_share == 0.0 and not result.memory_bound
    assert math.isnan(result.paper_token_share)


def test_duration_starts_with_the_first_arrival() -> None:
    result = measure(SimulatedRun(Setup()).run([request(0, 5, 2, arrival_s=100.0)]))
    assert result.duration_s == 2.0 and result.busy_share == 1.0


@pytest.mark.parametrize("step_s", [0.1, 0.3, 1 / 7])
def test_steady_window_takes_the_tokens_of_its_own_steps(step_s: float) -> None:
    # one runs all the time; 60 join it for 24 tokens each, at the same moment
    late = [request(i, 1, 24, arrival_s=7 * step_s) for i in range(1, 61)]
    run = SimulatedRun(Setup(num_pages=1000, step_s=step_s)).run([request(0, 4, 200), *late])
    result = measure(run)
    assert result.steady_output_tokens_per_s == pytest.approx(61 / step_s, rel=1e-9)


def test_metrics_of_a_random_run_are_finite_and_within_bounds() -> None:
    run = SimulatedRun(Setup("paged_prefix", num_pages=30)).run(
        random_requests(0, num_requests=40, shared_len=9, spread_s=10)
    )
    result = asdict(measure(run))
    undefined = {name for name, value in result.items() if not math.isfinite(value)}
    assert undefined == {"acceptance_rate", "draft_utilisation"}, "nothing was drafted"
    for name, value in result.items():
        if name.endswith("_share") or name in ("sharing_saved", "token_of_mapped"):
            assert 0 <= value <= 1, name
    for name in ("ttft", "tpot", "itl", "e2e"):
        ranks = [result[f"{name}_p{p}_ms"] for p in (50, 90, 95, 99)]
        assert ranks == sorted(ranks)


def measure(run: SimulatedRun) -> Metrics:
    steps = steps_frame(run.recorder.sink.steps, run.recorder.sink.entries)
    pool = PoolFacts(run.setup.num_pages, run.setup.page_size, 2**20)
    return compute_metrics(steps, requests_frame(run.recorder.sink.requests), pool, ServiceLevel())


def test_weighted_mean_of_nothing_is_not_a_number() -> None:
    assert weighted_mean(np.array([1.0, 4.0]), np.array([1.0, 2.0])) == 3.0
    assert math.isnan(weighted_mean(np.array([1.0]), np.array([0.0])))


def test_t_interval_from_five_values_on() -> None:
    # t(0.975, 4) = 2.776; standard deviation of 1..5 is sqrt(2.5)
    interval = t_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (interval.mean, interval.n) == (3.0, 5)
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)
    assert math.isnan(t_interval(np.array([1.0, 2.0, 3.0, 4.0])).half_width)
    assert t_interval(np.array([1.0, math.nan]))[::2] == (1.0, 1)
    assert math.isnan(t_interval(np.array([])).mean)


def test_frames_of_nothing_have_their_columns() -> None:
    steps, requests = steps_frame([], []), requests_frame([])
    assert list(steps.columns) == [*StepRecord._fields, *LedgerEntry._fields]
    assert isinstance(requests, pd.DataFrame) and not len(requests)

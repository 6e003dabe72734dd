"""Metrics of a fleet on a run of two replicas made by hand, and against sums over single runs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from harness.measure.fleet import replica_rows, steady_window_of_fleet
from harness.measure.ledger import LedgerEntry
from harness.measure.metrics import Metrics, PoolFacts, ServiceLevel, compute_metrics
from harness.measure.records import (
    RequestRecord,
    StepRecord,
    refused_record,
    requests_frame,
    steps_frame,
)

POOL = PoolFacts(num_pages=10, page_size=4, bytes_per_token=2**20, num_replicas=2)


def step(replica: int, start_s: float, duration_s: float, running: int) -> StepRecord:
    record = StepRecord(
        0, start_s, duration_s, 0, 1, 0, running, 0, 0, 0, 0, 0, 1.0, 0.0, 0.0, 0, ""
    )
    return record._replace(replica=replica)


def entry(token: int) -> LedgerEntry:
    empty = LedgerEntry(*[0] * len(LedgerEntry._fields))
    return empty._replace(token=token, free=40 - token, mapped_pages=5, logical_pages=5)


def done(request_id: int, replica: int, arrival_s: float, *token_s: float) -> RequestRecord:
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(token_s)]
    return refused_record(request_id, -1, 10, arrival_s, "", replica)._replace(
        status="finished",
        first_scheduled_s=arrival_s,
        first_token_s=token_s[0],
        finish_s=token_s[-1],
        num_output_tokens=len(token_s),
        output_len=len(token_s),
        itl_ms=gaps,
    )


# as they end: replica 1 is busy from 0 to 3 and from 5 to 6, replica 0 from 1 to 4
STEPS = [step(1, 0.0, 2.0, 2), step(0, 1.0, 1.5, 3), step(1, 2.0, 1.0, 1), step(0, 2.5, 1.5, 4)]
STEPS.append(step(1, 5.0, 1.0, 1))
ENTRIES = [entry(10), entry(20), entry(5), entry(40), entry(4)]
REQUESTS = [
    done(0, 1, 0.0, 2.0, 3.0),
    done(1, 0, 1.0, 2.5, 4.0)._replace(num_cached_tokens=8),
    done(2, 0, 1.0, 4.0),
    refused_record(3, -1, 99, 1.0, "too large", 0),
    done(4, 1, 5.0, 6.0),
]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return compute_metrics(
        steps_frame(STEPS, ENTRIES), requests_frame(REQUESTS), POOL, ServiceLevel(1600.0)
    )


def test_shares_are_slot_seconds_of_all_pools(metrics: Metrics) -> None:
    slot_s = 10 * 2.0 + 20 * 1.5 + 5 * 1.0 + 40 * 1.5 + 4 * 1.0
    assert metrics.utilisation == pytest.approx(slot_s / (40 * 7.0))
    assert metrics.free_share == pytest.approx(1 - slot_s / (40 * 7.0))
    assert metrics.idle_slot_s_per_token == pytest.approx((40 * 7.0 - slot_s) / 6)


def test_rates_are_over_the_time_of_the_whole_fleet(metrics: Metrics) -> None:
    assert metrics.duration_s == 6.0
    assert metrics.output_tokens_per_s == 6 / 6.0
    assert metrics.output_tokens_per_s_per_gib == pytest.approx(1.0 / (2 * 40 / 1024))
    assert metrics.busy_share == pytest.approx(7.0 / (2 * 6.0))
    assert metrics.prefix_hit_rate == 8 / 40
    assert metrics.goodput_requests_per_s == pytest.approx(2 / 6.0)  # TTFT 2.0, 1.5, 3.0, 1.0


def test_the_steady_window_is_of_what_runs_together(metrics: Metrics) -> None:
    # 2 from 0, 5 from 1, 4 from 2, 5 from 2.5, 4 from 3, none from 4, 1 from 5 to 6
    assert (metrics.steady_from_s, metrics.steady_to_s) == (1.0, 4.0)
    assert metrics.steady_output_tokens_per_s == pytest.approx(5 / 3.0)  # at 2, 2.5, 3, 4, 4


def test_imbalance_is_the_most_over_the_mean(metrics: Metrics) -> None:
    assert metrics.request_imbalance == pytest.approx(3 / 2.5)
    assert metrics.token_imbalance == pytest.approx((20 + 3 + 99) / ((20 + 3 + 99 + 20 + 3) / 2))
    assert metrics.busy_imbalance == pytest.approx(4.0 / 3.5)


def test_a_row_a_replica() -> None:
    rows = replica_rows(steps_frame(STEPS, ENTRIES), requests_frame(REQUESTS), 3)
    first, second, idle = rows.to_dict("records")
    assert (first["num_requests"], first["num_finished"], first["num_steps"]) == (3, 2, 2)
    assert (first["prompt_tokens"], first["output_tokens"], first["cached_tokens"]) == (20, 3, 8)
    assert first["prefix_hit_rate"] == 8 / 20
    assert (first["busy_s"], second["busy_s"], idle["busy_s"]) == (3.0, 4.0, 0.0)
    assert second["batched_requests"] == pytest.approx((2 * 2.0 + 1 + 1) / 4.0)
    assert first["token_slots"] == pytest.approx((20 * 1.5 + 40 * 1.5) / 3.0)
    assert second["computed_tokens"] == 3
    assert idle["num_requests"] == 0 and math.isnan(idle["prefix_hit_rate"])


@pytest.mark.parametrize("seed", range(20))
def test_the_steady_window_against_a_look_at_every_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = []
    for replica in range(4):
        now = float(rng.integers(0, 3))
        for _ in range(8):
            length = float(rng.integers(1, 4))
            steps.append(step(replica, now / 7, length / 7, int(rng.integers(1, 6))))
            now += length + float(rng.integers(0, 2)) * (rng.random() < 0.3)
    frame = pd.DataFrame(steps, columns=StepRecord._fields).sample(frac=1, random_state=seed)
    moments = (np.arange(200) + 0.5) / 7
    running = np.array(
        [
            sum(s.num_running for s in steps if s.start_s <= at < s.start_s + s.duration_s)
            for at in moments
        ]
    )
    is_in = running >= 0.8 * running.max()
    longest = max(len(list(run)) for inside, run in itertools.groupby(is_in) if inside)
    begin, end = steady_window_of_fleet(frame, 0.8)
    assert end - begin == pytest.approx(longest / 7)
    assert is_in[round(begin * 7) : round(end * 7)].all()


def test_nothing_has_no_window() -> None:
    assert all(map(math.isnan, steady_window_of_fleet(steps_frame([], []), 0.8)))

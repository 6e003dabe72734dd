"""When a queue grows, on queues whose capacity is known."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.backlog import backlog, is_sustained, majority_sustains


def served(arrival_s: np.ndarray, service_s: np.ndarray, servers: int) -> np.ndarray:
    """Finish times in a first-come, first-served queue."""
    free = [0.0] * servers
    finish = np.empty(len(arrival_s))
    for index, (arrival, service) in enumerate(zip(arrival_s, service_s, strict=True)):
        finish[index] = max(heapq.heappop(free), arrival) + service
        heapq.heappush(free, finish[index])
    return finish


def queue(load: float, seed: int, requests: int = 2000, servers: int = 16) -> bool:
    """Whether M/M/c at this fraction of its capacity is called growing."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / load, requests))
    return backlog(arrival, served(arrival, rng.exponential(servers, requests), servers)).grows


def test_a_queue_below_its_capacity_does_not_grow_and_one_above_does() -> None:
    assert sum(queue(0.85, seed) for seed in range(20)) == 0
    assert sum(queue(1.25, seed) for seed in range(20)) >= 19


def test_growth_is_the_share_of_arrivals_that_is_not_served() -> None:
    arrival = np.arange(3000.0)  # one a second
    finish = served(arrival, np.full(3000, 1.25), 1)  # 0.8 a second are served
    found = backlog(arrival, finish)
    assert found.growth == pytest.approx(0.2, abs=0.01)
    assert found.grows
    assert backlog(arrival, finish * 0 + arrival + 5).growth == pytest.approx(0, abs=0.01)


@given(st.floats(0.1, 3.0), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_and_origin_of_time_do_not_matter(load: float, scale: float, shift: float) -> None:
    arrival = np.arange(60.0)
    finish = served(arrival, np.full(60, load), 1)
    first = backlog(arrival, finish)
    second = backlog(arrival * scale + shift, finish * scale + shift)
    assert first.growth == pytest.approx(second.growth, abs=1e-3)


@pytest.mark.parametrize("arrival", [[], [2.0], [1.0, 1.0, 1.0]])
def test_without_a_window_there_is_no_growth(arrival: list[float]) -> None:
    found = backlog(np.array(arrival), np.array(arrival) + 1)
    assert math.isnan(found.growth) and not found.grows


def test_sustained_is_a_bound_on_latency_and_a_queue_that_does_not_grow() -> None:
    row = {"normalised_latency_ms": 100.0, "queue_grows": False}
    growing = row | {"queue_grows": True}
    unknown = row | {"normalised_latency_ms": math.nan}
    assert is_sustained(row, 100.0)
    assert not is_sustained(row, 99.0)
    assert not is_sustained(growing, 100.0)
    assert not is_sustained(unknown, 100.0)
    assert majority_sustains([row, growing, row], 100.0)
    assert not majority_sustains([row, growing], 100.0)
    assert not majority_sustains([], 100.0)

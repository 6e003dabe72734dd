"""Arrival processes: means, spread, prefix property."""

from __future__ import annotations

import numpy as np
import pytest

from harness.workloads.arrivals import arrival_times
from harness.workloads.config import WorkloadConfig


@pytest.mark.parametrize(
    ("arrivals", "burstiness", "cv"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)],
)
def test_mean_rate_and_coefficient_of_variation(arrivals, burstiness, cv):
    config = WorkloadConfig(arrivals=arrivals, rate=5.0, burstiness=burstiness)
    gaps = np.diff(arrival_times(config, 40_000, seed=1))
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04, abs=1e-9)


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma"])
def test_more_requests_keep_the_first_times_and_the_rate_only_stretches(arrivals):
    config = WorkloadConfig(arrivals=arrivals, rate=2.0, burstiness=0.5)
    many = arrival_times(config, 1000, seed=2)
    assert many[0] == 0
    assert np.array_equal(arrival_times(config, 10, seed=2), many[:10])
    slow = WorkloadConfig(arrivals=arrivals, rate=1.0, burstiness=0.5)
    assert arrival_times(slow, 1000, seed=2) == pytest.approx(2 * many)


@pytest.mark.parametrize("arrivals", ["all_at_once", "closed_loop"])
def test_all_at_once(arrivals):
    assert not arrival_times(WorkloadConfig(arrivals=arrivals), 5, seed=0).any()

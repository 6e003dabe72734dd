"""Percentiles of values that come in parts are those of all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.measure import pooled
from harness.measure.pooled import Pooled

PERCENTS = (0, 1, 50, 90, 99, 100)


def values(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    few_long = np.where(generator.random(5000) < 0.01, 1e4, 1.0)
    return generator.lognormal(3.0, 1.0, 5000) * few_long


@pytest.mark.parametrize("limit", [10**9, 4000, 0])
def test_parts_have_the_percentiles_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(pooled, "EXACT_UP_TO", limit)
    whole, found = values(0), Pooled()
    for part in np.array_split(whole, 7):
        found.add(part)
    tolerance = 1e-12 if limit > len(whole) else 1e-3
    expected = np.percentile(whole, PERCENTS, method="linear" if limit > 5000 else "lower")
    assert found.mean == pytest.approx(whole.mean())
    assert found.percentiles(PERCENTS) == pytest.approx(expected, rel=tolerance)


def test_nothing_has_no_percentiles() -> None:
    found = Pooled()
    found.add(np.zeros(0))
    assert math.isnan(found.mean)
    assert all(math.isnan(value) for value in found.percentiles(PERCENTS))


def test_zeros_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "EXACT_UP_TO", 0)
    found = Pooled()
    found.add(np.zeros(3))
    assert found.percentiles((50,)) == pytest.approx([0.0], abs=1e-300)

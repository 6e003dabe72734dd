"""Intervals, corrections and verdicts, against scipy and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.measure.statistics import (
    MIN_PAIRS_FOR_VERDICT,
    compare,
    equivalence_p_value,
    holm,
    paired_differences,
    paired_p_value,
    t_interval,
)

P_VALUES = st.lists(st.floats(0, 1), max_size=8)


def test_differences_are_by_seed() -> None:
    ours = {3: 5.0, 1: 2.0, 2: math.nan, 7: 1.0}
    theirs = {1: 1.0, 3: 1.0, 2: 0.0, 9: 4.0}
    assert paired_differences(ours, theirs).tolist() == [1.0, 4.0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.integers(0, 1000))
def test_the_paired_test_is_scipys(ours: list[float], seed: int) -> None:
    theirs = np.random.default_rng(seed).normal(size=len(ours))
    expected = stats.ttest_rel(ours, theirs)
    p_value = paired_p_value(np.array(ours) - theirs)
    assert p_value == pytest.approx(float(expected.pvalue), rel=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=20), st.floats(0.01, 10))
def test_the_interval_is_scipys(values: list[float], spread: float) -> None:
    array = np.array(values) + spread * np.arange(len(values))
    found = t_interval(array)
    if np.ptp(array) > 1e-6:
        low, high = stats.t.interval(0.95, len(array) - 1, array.mean(), stats.sem(array))
        assert found.mean - found.half_width == pytest.approx(float(low), abs=1e-6)
        assert found.mean + found.half_width == pytest.approx(float(high), abs=1e-6)


def test_constant_differences_need_no_variance() -> None:
    assert paired_p_value(np.zeros(6)) == 1.0
    assert paired_p_value(np.full(6, 0.25)) == 0.0
    assert math.isnan(paired_p_value(np.ones(1)))


@given(
    st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=9),
    st.floats(0.01, 0.2),
)
def test_equivalence_is_two_one_sided_tests_of_scipy(logs: list[float], limit: float) -> None:
    found = equivalence_p_value(np.array(logs), limit)
    if np.ptp(logs) < 1e-9:
        return
    bound = math.log1p(limit)
    below = stats.ttest_1samp(logs, bound, alternative="less").pvalue
    above = stats.ttest_1samp(logs, -bound, alternative="greater").pvalue
    assert found == pytest.approx(max(below, above), abs=1e-9)


def test_equal_logarithms_are_equivalent_within_the_limit_alone() -> None:
    assert equivalence_p_value(np.full(6, 0.01)) == 0
    assert equivalence_p_value(np.full(6, 0.06)) == 1
    assert math.isnan(equivalence_p_value(np.array([0.0])))


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_what_stepping_down_does(p_values: list[float], level: float) -> None:
    """The procedure as it is defined: the smallest against level / m, the next against
    level / (m - 1), until one is not below."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[index] >= level:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert {index for index, p_value in enumerate(adjusted) if p_value < level} == rejected


@given(P_VALUES)
def test_holm_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p_value <= adjusted <= min(1.0, len(p_values) * p_value)


def test_a_verdict_takes_six_pairs_and_a_direction() -> None:
    clear = np.array([1.0, 1.1, 0.9, 1.0, 1.05, 0.95])
    noise = np.array([1.0, -1.1, 0.9, -1.0, 1.05, -0.95])
    family = [clear, -clear, noise, clear[:5], np.zeros(0)]
    higher = [comparison.verdict for comparison in compare(family, higher_is_better=True)]
    assert higher == [
        "better", "worse", "no difference seen", "too few runs to tell", "too few runs to tell",
    ]  # fmt: skip
    lower = [comparison.verdict for comparison in compare(family, higher_is_better=False)]
    assert lower[:3] == ["worse", "better", "no difference seen"]
    five = compare(family, higher_is_better=True)[3]
    assert math.isfinite(five.difference.half_width) and math.isnan(five.p_value)


def test_what_cannot_be_tested_makes_the_family_no_larger() -> None:
    differences = np.array([1.0, 0.2, 1.3, 0.4, 1.1, 0.1])
    alone = compare([differences], higher_is_better=True)[0]
    among = compare([np.ones(3), differences, np.ones(5)], higher_is_better=True)[1]
    assert alone == among


def test_verdicts_over_a_family_of_nothing_are_seldom_wrong() -> None:
    """With 20 comparisons of pure noise, uncorrected tests would err in two families of three."""
    rng = np.random.default_rng(0)
    wrong = sum(
        any(
            comparison.verdict != "no difference seen"
            for comparison in compare(list(rng.normal(size=(20, MIN_PAIRS_FOR_VERDICT))), True)
        )
        for _ in range(200)
    )
    assert wrong <= 20  # 10 expected

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_study import plan

from experiments.paired import (
    against,
    best_at,
    doubts,
    excludes,
    paired_ratio,
    with_attainment,
    with_placement,
    with_settings,
)
from harness.measure.statistics import Interval, t_interval

ROWS = pd.DataFrame(
    [
        {"strategy": s, "rate": rate, "seed": seed, "speed": speed * (1 + seed) * rate}
        for s, speed in (("slow", 2.0), ("fast", 3.0))
        for rate in (1.0, 4.0)
        for seed in range(6)
    ]
)


def test_runs_are_compared_with_those_of_their_own_seed_and_keys() -> None:
    compared = against(ROWS, ROWS["strategy"] == "slow", ["rate"], ["speed"])
    fast = compared[compared["strategy"] == "fast"]
    # seeds differ sixfold and rates fourfold; the ratio sees neither
    assert fast["speed_ratio"].to_numpy() == pytest.approx(np.full(12, 1.5))
    assert fast["speed_gain"].to_numpy() == pytest.approx((1 + fast["seed"]) * fast["rate"])
    assert (compared[compared["strategy"] == "slow"]["speed_gain"] == 0).all()
    assert "speed_base" not in compared


def test_a_run_without_its_reference_has_no_ratio() -> None:
    kept = ROWS[(ROWS["strategy"] == "fast") | (ROWS["seed"] != 3)]
    compared = against(kept, kept["strategy"] == "slow", ["rate"], ["speed"])
    assert set(compared[compared["speed_ratio"].isna()]["seed"]) == {3}


def test_the_interval_of_a_paired_ratio_is_that_of_the_ratios() -> None:
    slow, fast = (ROWS[(ROWS["strategy"] == s) & (ROWS["rate"] == 1)] for s in ("slow", "fast"))
    ratio = paired_ratio(fast.sample(frac=1, random_state=1), slow, "speed")
    assert ratio.mean == pytest.approx(1.5)
    assert ratio.half_width == pytest.approx(0, abs=1e-12)
    assert paired_ratio(fast[fast["seed"] > 1], slow, "speed").n == 4


def test_best_at_takes_all_seeds_at_the_value_of_the_best_mean() -> None:
    best = best_at(ROWS[ROWS["strategy"] == "fast"], "speed", "rate")
    assert set(best["rate"]) == {4.0} and len(best) == 6


@pytest.mark.parametrize(
    ("interval", "answer"),
    [
        (Interval(1.2, 0.1, 10), True),
        (Interval(0.8, 0.1, 10), True),
        (Interval(1.05, 0.1, 10), False),
        (Interval(1.0, 0.0, 10), False),
        (Interval(2.0, math.nan, 4), False),
    ],
)
def test_excludes(interval: Interval, answer: bool) -> None:
    assert excludes(interval, 1.0) is answer


def test_attainment_counts_refused_requests_too() -> None:
    rows = pd.DataFrame(
        {"goodput_requests_per_s": [2.0, math.nan], "duration_s": [10.0, math.nan],
         "num_requests": [25, 25]}
    )  # fmt: skip
    assert with_attainment(rows)["attainment"].tolist() == [0.8, 0.0]


def test_a_placement_is_the_fit_or_the_strategy_itself() -> None:
    rows = pd.DataFrame({"allocator": ["contiguous", "paged"], "fit": ["best_fit", None]})
    assert with_placement(rows)["placement"].tolist() == ["best_fit", "paged"]


def test_settings_are_those_of_the_run(tmp_path: Path) -> None:
    jobs, _ = plan(
        tmp_path, "executor=simulated", "model=tiny", "workload.arrivals=gamma",
        "workload.burstiness=0.25,4", "allocator=contiguous",
    )  # fmt: skip
    rows = pd.DataFrame({"run_id": [job.run_id for job in reversed(jobs)]})
    keys = {"burst": "workload.burstiness", "fit": "allocator.options.fit", "no": "kv.nothing"}
    chosen = with_settings(rows, jobs, keys)
    assert chosen["burst"].tolist() == [job.config.workload.burstiness for job in reversed(jobs)]
    assert set(chosen["fit"]) == {"buddy"} and chosen["no"].isna().all()


def test_a_ratio_is_doubted_where_its_family_does_not_carry_it() -> None:
    wide, narrow = Interval(1.3, 0.29, 10), Interval(1.3, 0.02, 10)
    assert doubts([narrow, wide]) == ["", ""]
    left = " (not separated from 1 by 10 seeds)"
    assert doubts([narrow, *[wide] * 9]) == ["", *[left] * 9]  # corrected for ten
    assert doubts([Interval(1.0, 0.0, 8), Interval(1.1, 0.0, 5)]) == [
        " (not separated from 1 by 8 seeds)",
        "",  # the same at every seed
    ]
    assert doubts([Interval(1.5, 0.1, 5), Interval(1.5, math.nan, 1)]) == [
        " (5 seeds: too few to tell)",
        " (1 seed: too few to tell)",
    ]


def test_where_nothing_differs_a_family_of_ratios_is_mostly_doubted() -> None:
    rng = np.random.default_rng(1)
    families = [[t_interval(rng.normal(1, 0.1, 8)) for _ in range(5)] for _ in range(400)]
    assert sum("" in doubts(family) for family in families) <= 0.065 * len(families)

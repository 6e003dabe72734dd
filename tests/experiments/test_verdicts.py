"""Verdicts over stored rows."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.verdicts import verdicts


def rows(**rates: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"strategy": name, "seed": seed, "status": "complete", "requests_per_s": rate}
            for name, values in rates.items()
            for seed, rate in enumerate(values)
        ]
    )


def test_a_verdict_for_each_variant_by_seed() -> None:
    base = [1.0, 3.0, 2.0, 5.0, 4.0, 6.0]
    table = rows(
        base=base,
        faster=[value + 0.5 + 0.01 * seed for seed, value in enumerate(base)],
        same=base,
        few=base[:3],
    )
    found = verdicts(table, "strategy", "base", "requests_per_s", higher_is_better=True)
    by_name = found.set_index("strategy")
    assert list(by_name.index) == ["faster", "same", "few"]
    assert by_name["verdict"].tolist() == ["better", "no difference seen", "too few runs to tell"]
    assert by_name.loc["faster", "difference"] == pytest.approx(0.525)
    assert by_name["pairs"].tolist() == [6, 6, 3]


def test_a_failed_run_leaves_its_pair_out() -> None:
    table = rows(base=[1.0] * 7, other=[2.0] * 7)
    table.loc[0, "status"] = "failed"
    found = verdicts(table, "strategy", "base", "requests_per_s", higher_is_better=False)
    assert found["pairs"].tolist() == [6] and found["verdict"].tolist() == ["worse"]


def test_one_observation_repeated_is_not_tested() -> None:
    noisy = [1.0, 1.2, 0.9, 1.1, 1.3, 0.8]
    table = rows(base=[1.0] * 6, more=[2.0] * 6, same=[1.0] * 6, noisy=noisy)
    found = verdicts(table, "strategy", "base", "requests_per_s", higher_is_better=True)
    by_name = found.set_index("strategy")
    assert by_name["verdict"].tolist() == ["better", "the same", "no difference seen"]
    assert by_name["is_exact"].tolist() == [True, True, False]
    assert by_name.loc[["more", "same"], ["p_value", "half_width"]].isna().all(axis=None)
    alone = verdicts(
        rows(base=[1.0] * 6, noisy=noisy),
        "strategy", "base", "requests_per_s", higher_is_better=True,
    )  # fmt: skip
    assert by_name.loc["noisy", "p_value"] == alone["p_value"].iloc[0]
    assert math.isfinite(by_name.loc["noisy", "p_value"])


def test_a_baseline_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="strategy=paged"):
        verdicts(rows(a=[1.0]), "strategy", "paged", "requests_per_s", higher_is_better=True)

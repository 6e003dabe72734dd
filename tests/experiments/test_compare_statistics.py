"""Verdicts over random studies: how often they are wrong, and how often they find what is there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.comparison.metrics import HEADLINE, METRICS, NOISE_FLOOR
from experiments.comparison.pairs import OVERALL, Finding, findings, pairs_of

Rows = tuple[pd.DataFrame, pd.DataFrame]
NUM_COMMANDS = 120
NAMES = ("utilisation", "batched_requests", "output_tokens_per_s", "ttft_ms")
METRICS_USED = [METRICS[name] for name in NAMES]


def study(
    generator: np.random.Generator,
    *,
    num_cells: int = 2,
    num_seeds: int = 6,
    spread: float = 0.1,
    effect: float = 1.0,
    session: float = 0.0,
) -> dict[str, Rows]:
    """Two studies: each value is the seed's workload times the run's own noise; every metric of the
    second one is `effect` times as large, and all of it is shifted by the session's luck."""
    cells = {}
    luck = [float(np.exp(session * generator.standard_normal())) for _ in range(2)]
    for cell in range(num_cells):
        workload = np.exp(0.5 * generator.standard_normal((num_seeds, len(NAMES))))
        sides = []
        for side in range(2):
            noise = np.exp(spread * generator.standard_normal(workload.shape))
            values = workload * noise * luck[side] * (effect if side else 1.0)
            rows = pd.DataFrame(values, columns=list(NAMES))
            sides.append(rows.assign(seed=range(num_seeds), status="complete"))
        cells[f"cell {cell}"] = (sides[0], sides[1])
    return cells


def verdicts(cells: dict[str, Rows], *, is_noisy: bool = False) -> list[Finding]:
    return findings(pairs_of(cells, METRICS_USED), is_noisy=is_noisy)


def share_of_commands(
    says: Callable[[list[Finding]], bool], *, is_noisy: bool, **how: float
) -> float:
    found = [
        says(verdicts(study(np.random.default_rng(seed), **how), is_noisy=is_noisy))  # type: ignore[arg-type]
        for seed in range(NUM_COMMANDS)
    ]
    return sum(found) / len(found)


def says_any(found: list[Finding]) -> bool:
    return any(each.verdict in ("better", "worse") for each in found)


def at_most(share: float) -> float:
    """What a share of NUM_COMMANDS stays below in all but one of a thousand samples."""
    return float(stats.binom.ppf(0.999, NUM_COMMANDS, share)) / NUM_COMMANDS


@pytest.mark.parametrize(("num_cells", "num_seeds"), [(1, 6), (3, 6), (2, 12)])
def test_equal_studies_get_a_verdict_in_at_most_one_command_of_twenty(
    num_cells: int, num_seeds: int
) -> None:
    how = {"num_cells": num_cells, "num_seeds": num_seeds}
    assert share_of_commands(says_any, is_noisy=False, **how) <= at_most(0.05)


def test_without_the_correction_it_would_be_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.comparison.pairs.holm", tuple)
    assert share_of_commands(says_any, is_noisy=False, num_cells=3) > 2 * at_most(0.05)


def test_what_a_slower_machine_does_to_all_runs_is_no_finding() -> None:
    """A session whose luck is as large as a run's is in every pair alike."""
    how = {"session": 0.05, "spread": 0.05, "num_seeds": 12}
    assert share_of_commands(says_any, is_noisy=False, **how) > 0.3
    assert share_of_commands(says_any, is_noisy=True, **how) <= at_most(0.05)


@pytest.mark.parametrize("is_noisy", [False, True])
def test_a_difference_of_five_deviations_is_found(is_noisy: bool) -> None:
    def finds(found: list[Finding]) -> bool:
        overall = {each.metric.name: each.verdict for each in found if each.cell == OVERALL}
        return overall["output_tokens_per_s"] == "worse" and overall["ttft_ms"] == "better"

    power = share_of_commands(finds, is_noisy=is_noisy, effect=0.8, spread=0.04)
    assert power >= 0.8


@given(
    n=st.integers(6, 12),
    centre=st.floats(-0.5, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_one_metric_in_one_cell_is_a_paired_t_test(n: int, centre: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    before = generator.uniform(1, 2, n)
    after = before * np.exp(centre + 0.2 * generator.standard_normal(n))
    cells = {
        "one": (
            pd.DataFrame({"seed": range(n), "ttft_ms": before}),
            pd.DataFrame({"seed": range(n), "ttft_ms": after}).sample(frac=1, random_state=1),
        )
    }
    (found,) = findings(pairs_of(cells, [METRICS["ttft_ms"]]), is_noisy=False)
    expected = stats.ttest_rel(np.log(after), np.log(before))
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = np.expm1(expected.confidence_interval(0.95))
    assert (found.change.low, found.change.high) == pytest.approx((low, high))
    assert found.change.mean == pytest.approx(stats.gmean(after / before) - 1)
    is_worse = expected.pvalue < 0.05 and found.change.mean > 0
    assert (found.verdict == "worse") == is_worse


def test_too_few_pairs_get_no_verdict_however_plain_the_difference() -> None:
    for num_seeds in range(1, 6):
        cells = study(np.random.default_rng(0), num_seeds=num_seeds, spread=0.001, effect=2)
        found = verdicts(cells)
        assert {each.verdict for each in found} == {"too few runs to tell"}
        assert {each.change.num_pairs for each in found} == {num_seeds}
        assert math.isnan(found[0].change.low) == (num_seeds < 5)


def test_equal_pairs_are_equal_and_make_the_family_no_larger() -> None:
    cells = study(np.random.default_rng(1), num_cells=1, effect=0.9, spread=0.02)
    alone = verdicts(cells)
    same = {"cell 0": cells["cell 0"], "same": (cells["cell 0"][0], cells["cell 0"][0].copy())}
    both = [each for each in verdicts(same) if each.cell == "cell 0"]
    is_equal = [each.verdict for each in verdicts(same) if each.cell == "same"]
    assert is_equal == ["equal"] * len(NAMES)
    # all cells together make the family twice as large, the equal cell does not
    assert both[0].p_value <= 2 * alone[0].p_value


def test_a_metric_that_starts_from_nothing_is_told_by_its_direction() -> None:
    before = pd.DataFrame({"seed": range(6), "prefix_hit_rate": np.zeros(6)})
    after = before.assign(prefix_hit_rate=0.4)
    metric = METRICS["prefix_hit_rate"]
    for sides, verdict in (((before, after), "better"), ((after, before), "worse")):
        (found,) = findings(pairs_of({"one": sides}, [metric]), is_noisy=False)
        assert found.verdict == verdict
    assert found.change.mean == pytest.approx(-1)


def test_the_noise_has_a_floor_by_the_metric_s_clock() -> None:
    cells = study(np.random.default_rng(2), spread=1e-6, effect=1.03, num_cells=1)
    found = {each.metric.name: each for each in verdicts(cells, is_noisy=True)}
    assert found["ttft_ms"].noise == NOISE_FLOOR["time"]
    assert found["ttft_ms"].verdict == "within the noise of separate sweeps"
    assert found["utilisation"].noise == NOISE_FLOOR["share"]
    assert found["utilisation"].verdict == "better"


def test_a_simulated_cell_that_is_the_same_at_every_seed_is_one_exact_observation() -> None:
    before = pd.DataFrame({"seed": range(6), "ttft_ms": 100.0, "utilisation": 0.5})
    cells = {"one": (before, before.assign(ttft_ms=103.0))}
    metrics = [METRICS["ttft_ms"], METRICS["utilisation"]]
    slower, same = findings(pairs_of(cells, metrics), is_noisy=False, is_simulated=True)
    assert (slower.verdict, same.verdict) == ("worse", "equal")
    assert slower.change.is_exact and slower.change.num_pairs == 1
    assert slower.change.mean == pytest.approx(0.03)
    assert math.isnan(slower.p_value) and math.isnan(slower.change.low)
    varied = {"one": (before, before.assign(ttft_ms=103.0, utilisation=np.linspace(0.5, 0.6, 6)))}
    found = findings(pairs_of(varied, metrics), is_noisy=False, is_simulated=True)
    assert not any(each.change.is_exact for each in found)


def test_every_headline_metric_has_a_direction() -> None:
    assert {metric.column.best for metric in (*HEADLINE, *METRICS.values())} == {"max", "min"}

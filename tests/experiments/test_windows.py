"""Averages over a stretch of time, beside the same found by looking at many instants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_study import Runner

from experiments.windows import PAPER_VIEW, Window, overlap_s, window_means, with_window
from harness.measure.ledger import CLASSES

SLOTS = 100


def made_steps(seed: int, count: int = 40) -> pd.DataFrame:
    """Steps of random length with gaps between some, whose classes add up to the pool."""
    rng = np.random.default_rng(seed)
    durations = rng.uniform(0.05, 0.5, count)
    gaps = rng.choice([0.0, 0.3], count)
    starts = np.cumsum(durations + gaps) - durations
    classes = rng.multinomial(SLOTS, np.full(len(CLASSES), 1 / len(CLASSES)), count)
    return pd.DataFrame(
        {
            "start_s": starts,
            "duration_s": durations,
            "num_running": rng.integers(0, 9, count),
            "num_waiting": rng.integers(0, 2, count),
            **dict(zip(CLASSES, classes.T, strict=True)),
        }
    )


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_many_instants(seed: int) -> None:
    steps = made_steps(seed)
    window = Window(2.017, 7.303)
    found = window_means(steps, window)
    instants = np.linspace(window.from_s, window.to_s, 200_001)
    index = np.searchsorted(steps["start_s"], instants, side="right") - 1
    busy = instants < (steps["start_s"] + steps["duration_s"]).to_numpy()[index]
    seen = steps.iloc[index[busy]]
    for name, classes in PAPER_VIEW.items():
        share = seen[list(classes)].sum(axis="columns").mean() / SLOTS
        assert found[f"window_{name}"] == pytest.approx(share, rel=1e-3)
    assert found["window_batched"] == pytest.approx(seen["num_running"].mean(), rel=1e-3)
    assert found["window_queued"] == pytest.approx((seen["num_waiting"] > 0).mean(), rel=1e-3)
    assert found["window_covered"] == pytest.approx(busy.mean(), rel=1e-3)
    assert sum(found[f"window_{name}"] for name in PAPER_VIEW) == pytest.approx(1)


def test_a_step_counts_for_as_long_as_it_lies_within() -> None:
    steps = pd.DataFrame({"start_s": [0.0, 1.0, 2.0], "duration_s": [1.0, 1.0, 1.0]})
    assert overlap_s(steps, Window(0.75, 1.5)).tolist() == pytest.approx([0.25, 0.5, 0.0])


def test_every_class_is_in_one_of_the_papers() -> None:
    assert sorted(name for names in PAPER_VIEW.values() for name in names) == sorted(CLASSES)


def test_rows_get_their_own_repetition_and_short_runs_nothing(
    run_tiny: Runner, tmp_path: Path
) -> None:
    study = run_tiny("repetitions=2", "kv.pool_tokens=320", "workload.arrivals=all_at_once")
    ends = study.rows["duration_s"]
    window = Window(0.0, float(ends.min()))
    found = with_window(study.rows, study.jobs, window)
    whole = found.loc[ends.idxmin()]
    assert whole["window_batched"] == pytest.approx(whole["batched_requests"], rel=1e-6)
    assert found["window_batched"].nunique() == 2
    beyond = with_window(study.rows, study.jobs, Window(0.0, float(ends.max()) + 1))
    assert beyond["window_batched"].isna().all()
    job = replace(study.jobs[0], root=tmp_path)
    with pytest.raises(AssertionError):
        with_window(study.rows, [job], window)

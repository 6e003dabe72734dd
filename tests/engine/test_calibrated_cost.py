"""A calibrated step takes what the fit says of its work, and says when it knows nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.engine.cost.calibrated import (
    FEATURES,
    TOKEN_KNOTS,
    CalibratedCost,
    Calibration,
    features,
)
from harness.engine.cost.step_work import StepWork, WorkCounter, WorkCounts
from harness.engine.device.model_shape import LayerGroup
from harness.engine.plan import Chunk, StepPlan
from harness.engine.request import SamplingParams

COUNTER = WorkCounter(4, (LayerGroup(None, (0,)),))


def calibration(noise: Sequence[float] | None = None, highest: float = 100.0) -> Calibration:
    seconds = {name: 1e-3 * (index + 1) for index, name in enumerate(FEATURES)}
    return Calibration(
        seconds=seconds,
        highest=dict.fromkeys(FEATURES, highest),
        decode_noise=noise or [1.0],
        prompt_noise=[2.0],
        model={"name": "tiny"},
        kv_dtype="auto",
        page_sizes=[4],
        allocators=["paged"],
        workloads=["fixed"],
        num_runs=1,
        num_steps=1000,
        fit_error=0.01,
        environment={"cpu": "some"},
    )


def plan(*counts: int) -> StepPlan:
    draw = (SamplingParams(),)
    return StepPlan(tuple(Chunk(i, 5, [0] * count, draw) for i, count in enumerate(counts)))


@given(st.integers(0, 2000))
def test_segments_of_tokens_add_up(num_tokens: int) -> None:
    values = dict(zip(FEATURES, features(WorkCounts(num_tokens), 4), strict=True))
    segments = [values[f"tokens from {knot}"] for knot in TOKEN_KNOTS]
    assert sum(segments) == num_tokens and min(segments) >= 0
    widths = [high - low for low, high in pairwise(TOKEN_KNOTS)]
    for width, this, following in zip(widths, segments, segments[1:], strict=False):
        assert this <= width and (following == 0 or this == width)


def test_a_step_is_the_sum_of_what_it_does() -> None:
    cost = CalibratedCost(calibration(), COUNTER, 4)
    step = plan(1, 1)
    values = features(WorkCounts.of(COUNTER.count(step)), 4)
    wanted = sum(1e-3 * (index + 1) * value for index, value in enumerate(values))
    assert cost.step_s(step) == pytest.approx(wanted)
    prompt = plan(3)
    values = features(WorkCounts.of(COUNTER.count(prompt)), 4)
    wanted = 2.0 * sum(1e-3 * (index + 1) * value for index, value in enumerate(values))
    assert cost.step_s(prompt) == pytest.approx(wanted)


def test_noise_is_drawn_as_it_was_measured_and_alike_for_the_same_seed() -> None:
    levels = [0.5, 1.0, 1.5, 5.0]
    runs = []
    for seed in (0, 0, 1):
        cost = CalibratedCost(calibration(levels), COUNTER, 4, seed)
        runs.append([cost.step_s(plan(1)) for _ in range(4000)])
    assert runs[0] == runs[1] != runs[2]
    alone = CalibratedCost(calibration(), COUNTER, 4).step_s(plan(1))
    drawn = [round(seconds / alone, 6) for seconds in runs[0]]
    for level in levels:
        assert drawn.count(level) == pytest.approx(1000, rel=0.15)


def test_steps_unlike_any_that_were_seen_are_counted() -> None:
    cost = CalibratedCost(calibration(highest=30.0), COUNTER, 4)
    for count in (1, 1, 1, 40):
        cost.step_s(plan(count))
    assert cost.extrapolated_share == 0.25
    many = CalibratedCost(calibration(highest=30.0), COUNTER, 4)
    many.step_s(StepPlan((), freed_seq_ids=tuple(range(500))))
    assert many.extrapolated_share == 0.0
    never = CalibratedCost(calibration(highest=0.0), COUNTER, 4)
    never.step_s(plan(1))
    assert never.extrapolated_share == 1.0


def test_a_draft_model_s_passes_are_added_up() -> None:
    work = StepWork(
        4, 1, draft=(StepWork(2, decode_pairs=5), StepWork(1, prompt_pairs=7, decode_pairs=1))
    )
    counts = WorkCounts.of(work)
    assert (counts.draft_passes, counts.draft_tokens, counts.draft_pairs) == (2, 3, 13)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "calibration.json"
    calibration().save(path)
    assert Calibration.load(path) == calibration()


@pytest.mark.parametrize("text", ["", "{}", '{"seconds": 1}', "[1]"])
def test_another_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(tmp_path / "x.json")
    with pytest.raises(ValueError, match="cannot be read"):
        Calibration.load(tmp_path / "missing.json")


def test_features_of_another_version_are_told(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    calibration().save(path)
    path.write_text(path.read_text().replace('"decode keys"', '"decode tokens"'))
    with pytest.raises(ValueError, match="other features"):
        Calibration.load(path)

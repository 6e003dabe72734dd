"""What is drawn at random in simulation is drawn for each replica and each seed apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from harness.compose import Composer, hydra_session
from harness.config import RunConfig
from harness.conversion import to_mapping
from harness.engine.cost.calibrated import FEATURES, Calibration
from harness.engine.device.model_shape import model_preset
from harness.engine.executor import Executor
from harness.engine.plan import UNKNOWN_DRAFT, Chunk, StepPlan
from harness.engine.request import SamplingParams
from harness.measure.environment import capture_environment
from harness.measure.record_files import KeptRecords
from harness.runs.fleet import PreparedFleet, prepare_fleet
from harness.runs.one_run import execute_run, make_workload, simulated_device
from harness.runs.step_cost import simulated_executor

DECODE = StepPlan((Chunk(0, 5, [0], (SamplingParams(),)),))
VERIFY = StepPlan(
    tuple(
        Chunk(i, 5, [0, *5 * [UNKNOWN_DRAFT]], num_drafts=5, true_ids=range(6)) for i in range(50)
    )
)
BEAMS = StepPlan(tuple(Chunk(i, 5, [0], num_candidates=4) for i in range(5)))


def calibrated(path: Path, highest: float, *words: str) -> RunConfig:
    """Three replicas, whose steps vary by 1 %."""
    Calibration(
        seconds=dict.fromkeys(FEATURES, 1e-4),
        highest=dict.fromkeys(FEATURES, highest),
        decode_noise=[0.99, 1.0, 1.01],
        prompt_noise=[0.99, 1.0, 1.01],
        model=to_mapping(model_preset("tiny")),
        kv_dtype="auto",
        page_sizes=[16],
        allocators=["paged"],
        workloads=["fixed"],
        num_runs=1,
        num_steps=1000,
        fit_error=0.01,
        environment={},
    ).save(path / "fit.json")
    with hydra_session():
        return Composer().run(
            ("model=tiny", "executor=simulated", "executor.cost=calibrated", "cluster.replicas=3",
             f"executor.calibration={path}/fit.json", "workload.num_requests=12",
             "engine.speculation.acceptance=0.5", *words)
        )  # fmt: skip


def prepared(config: RunConfig) -> PreparedFleet:
    device = simulated_device(config)
    workload = make_workload(config, device)
    return prepare_fleet(config, workload, 200, device, KeptRecords())


def test_replicas_do_not_draw_the_same_and_the_first_draws_as_if_alone(tmp_path: Path) -> None:
    config = calibrated(tmp_path, 1e9)
    run = prepared(config)
    alone = simulated_executor(config, simulated_device(config).shape, run.memories[0].groups)
    drawn = [draw(each) for each in (alone, *run.executors)]
    assert drawn[0] == drawn[1]
    for ours, theirs in ((1, 2), (2, 3), (1, 3)):
        assert all(a != b for a, b in zip(drawn[ours], drawn[theirs], strict=True))


def draw(executor: Executor) -> tuple[object, object, object]:
    """Noise of steps, accepted drafts, candidates of beams."""
    return (
        [executor.execute(DECODE).duration_s for _ in range(50)],
        executor.execute(VERIFY).num_accepted,
        executor.execute(BEAMS).candidates,
    )


def test_seeds_do_not_draw_the_same_and_one_seed_does(tmp_path: Path) -> None:
    config = calibrated(tmp_path, 1e9)
    shape = simulated_device(config).shape
    groups = prepared(config).memories[0].groups
    first, again, *others = [
        draw(simulated_executor(replace(config, seed=seed), shape, groups)) for seed in (0, 0, 1, 2)
    ]
    assert first == again
    for ours, theirs in itertools.combinations((first, *others), 2):
        assert all(a != b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "words",
    [
        ["executor.cost=calibrated", "executor.calibration=fit.json"],
        ["allocator=paged_cow", "workload.beam_width=4", "workload.max_output_len=40",
         "kv.pool_tokens=4000"],
        ["engine.speculation.method=injected", "engine.speculation.num_tokens=4",
         "engine.speculation.acceptance=0.6"],
        ["engine.speculation.method=draft_model", "engine.speculation.draft=tiny",
         "engine.speculation.num_tokens=4", "engine.speculation.acceptance=0.6",
         "kv.pool_tokens=6000"],
    ],
    ids=["noise", "beams", "injected drafts", "drafts of a model"],
)  # fmt: skip
def test_repetitions_of_a_simulated_run_of_equal_requests_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    calibrated(tmp_path, 1e9)
    with hydra_session():
        config = Composer().run(
            ["model=tiny", "executor=simulated", "repetitions=3", "workload=fixed",
             "workload.num_requests=12", "workload.arrivals=all_at_once", *words]
        )  # fmt: skip
    run = execute_run(
        config, "id", "label", simulated_device(config), capture_environment("none", 1), tmp_path
    )
    figures = {(each["duration_s"], each["token_share"]) for each in run.summary}
    assert len(figures) == 3


def test_what_lies_beyond_a_fit_is_a_share_of_all_replicas_steps(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(
        "from harness.cluster.router import Router\n"
        "class First(Router):\n"
        "    def route(self, request, now_s):\n"
        "        return 0\n"
    )
    for highest, share in ((0.0, 1.0), (1e9, 0.0)):
        config = calibrated(tmp_path, highest, f"cluster.router={tmp_path}/first.py:First")
        run = prepared(config)
        run.run()
        assert run.extrapolated_share == pytest.approx(share)

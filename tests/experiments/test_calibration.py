"""A fit finds again what made the steps' times, and says when it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.calibration.error import GOALS, Pair, draw, errors, to_markdown
from experiments.calibration.fit import _noise, busy_steps, fit
from harness.compose import Composer, hydra_session
from harness.config import ConfigError, RunConfig
from harness.conversion import to_mapping
from harness.engine.cost.calibrated import FEATURES, Calibration
from harness.runs.code_hash import allocator_hash
from harness.runs.jobs import Job
from harness.runs.preflight import Preflight
from harness.runs.store import RunStore, StoredRun
from harness.runs.worker import DeviceCache, do_job

TRUTH = {
    "step": 2e-3, "tokens from 0": 1e-4, "tokens from 2": 1e-4, "tokens from 4": 1e-4,
    "tokens from 8": 2e-4, "tokens from 16": 2e-4, "tokens from 32": 3e-4,
    "tokens from 64": 3e-4, "tokens from 128": 3e-4, "decode keys": 1e-6, "prompts": 5e-4,
    "prompt query-key pairs": 1e-7,
}  # fmt: skip


def truth(path: Path) -> Calibration:
    """A machine whose steps take exactly what TRUTH says."""
    with hydra_session():
        model = Composer().run(["model=tiny"]).model
    made = Calibration(
        {name: TRUTH.get(name, 0.0) for name in FEATURES},
        dict.fromkeys(FEATURES, 1e9),
        [1.0],
        [1.0],
        to_mapping(model),
        "auto",
        [16],
        ["paged"],
        ["sharegpt"],
        1,
        1,
        0.0,
        {},
    )
    made.save(path)
    return made


def do(tmp_path: Path, run_id: str, *overrides: str) -> Job:
    """A run on the machine of TRUTH; it is stored."""
    path = tmp_path / "truth.json"
    truth(path)
    with hydra_session():
        config = Composer().run(
            ["executor=simulated", "executor.cost=calibrated", f"executor.calibration={path}",
             "model=tiny", "workload=sharegpt_quarter", "kv.pool_tokens=4096",
             "measure.step_work=true", "workload.num_requests=60", *overrides]
        )  # fmt: skip
    return do_config(tmp_path, run_id, config)


def do_config(tmp_path: Path, run_id: str, config: RunConfig) -> Job:
    job = Job(
        config, run_id, run_id, "fit", tmp_path / "runs", allocator_hash(config.allocator.name)
    )
    result = do_job(job, DeviceCache())
    assert result.status == "complete", result.error
    return job


def stored(job: Job) -> StoredRun:
    run = RunStore(job.root).find(job.run_id)
    assert run is not None
    return run


def test_the_fit_finds_what_made_the_times(tmp_path: Path) -> None:
    jobs = [
        do(tmp_path, "a", "engine.max_num_seqs=4"),
        do(tmp_path, "b", "engine.max_num_seqs=40", "kv.page_size=8"),
        do(tmp_path, "c", "workload.arrivals=poisson", "workload.rate=20"),
    ]
    found = fit([stored(job) for job in jobs], {})
    assert found.fit_error < 1e-3
    for name in ("step", "decode keys", "tokens from 32"):
        assert found.seconds[name] == pytest.approx(TRUTH[name], rel=0.1)
    assert np.mean(found.decode_noise) == pytest.approx(1, abs=1e-3)
    path = tmp_path / "found.json"
    found.save(path)
    seen = do(tmp_path, "seen", "allocator=paged_prefix", "kv.page_size=4", "seed=5")
    executor = dataclasses.replace(seen.config.executor, calibration=str(path))
    again = do_config(tmp_path, "again", dataclasses.replace(seen.config, executor=executor))
    frame = errors([Pair(seen, again)])
    for goal in GOALS:
        assert abs(frame[f"{goal.metric}_error"].iloc[0]) < 1
    assert "goal" in to_markdown(frame)
    assert {path.suffix for path in draw(frame, [seen, again], tmp_path / "figures")} == {
        ".pdf", ".png", ".svg", ".csv", ".json"
    }  # fmt: skip


def test_time_without_anything_to_do_is_no_step_s(tmp_path: Path) -> None:
    run = stored(do(tmp_path, "slow", "workload.arrivals=poisson", "workload.rate=0.5"))
    steps = run.frame("steps")
    apart = np.diff(steps["start_s"])
    assert apart.max() > 1.0
    busy = busy_steps(run)
    assert busy.interval_s.max() == pytest.approx(steps["duration_s"].max(), rel=1e-6)
    assert len(busy.interval_s) > 0.8 * len(steps)


def test_noise_keeps_the_time_in_all(tmp_path: Path) -> None:
    run = stored(do(tmp_path, "noisy"))
    busy = busy_steps(run)
    rng = np.random.default_rng(0)
    noise = rng.gamma(4.0, 0.25, size=len(busy.interval_s))
    every = np.ones(len(noise), dtype=bool)
    levels = np.array(_noise(busy.interval_s * noise, busy.interval_s, every))
    total = (busy.interval_s * noise).sum() / busy.interval_s.sum()
    assert levels.mean() == pytest.approx(total)
    assert np.percentile(levels, 99) == pytest.approx(np.percentile(noise, 99), rel=0.05)


def test_too_few_steps_are_refused_with_how_many_it_takes(tmp_path: Path) -> None:
    few = stored(do(tmp_path, "few", "workload.num_requests=2"))
    with pytest.raises(ConfigError, match=r"too few for a fit of \d+ features: it needs \d+"):
        fit([few], {})


def test_runs_of_two_models_are_refused(tmp_path: Path) -> None:
    run = stored(do(tmp_path, "one"))
    other = dataclasses.replace(run, config={**run.config, "model": {"name": "other"}})
    with pytest.raises(ConfigError, match="other, tiny: a calibration is of one model"):
        fit([run, other], {})


def test_a_run_without_work_is_told_the_key(tmp_path: Path) -> None:
    run = stored(do(tmp_path, "bare", "measure.step_work=false"))
    with pytest.raises(ConfigError, match=r"measure\.step_work=true"):
        busy_steps(run)


def test_a_calibration_is_of_its_own_model(tmp_path: Path) -> None:
    job = do(tmp_path, "one")
    config = dataclasses.replace(
        job.config, model=dataclasses.replace(job.config.model, name="small", dtype="bfloat16")
    )
    with pytest.raises(ConfigError, match=r"fitted to model=tiny.*differ in name, dtype"):
        Preflight().check(config)
    gone = dataclasses.replace(job.config.executor, calibration="nowhere.json")
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read.*calibrate"):
        Preflight().check(dataclasses.replace(job.config, executor=gone))


def test_beyond_the_fit_is_a_column(tmp_path: Path) -> None:
    narrow = dataclasses.replace(
        truth(tmp_path / "n.json"), highest={**dict.fromkeys(FEATURES, 1e9), "sequences": 4.0}
    )
    narrow.save(tmp_path / "narrow.json")
    job = do(tmp_path, "wide")
    executor = dataclasses.replace(job.config.executor, calibration=str(tmp_path / "narrow.json"))
    beyond = do_config(tmp_path, "beyond", dataclasses.replace(job.config, executor=executor))
    assert stored(job).summary[0]["extrapolated_share"] == 0
    assert stored(beyond).summary[0]["extrapolated_share"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "."], "no complete run with executor=torch"),
        (["nonsense"], "neither an option"),
        (["--runs", ".", "--validate"], "leave out"),
        (["model=smal"], "did you mean small"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

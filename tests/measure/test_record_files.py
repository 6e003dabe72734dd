"""Records that went through files, a few rows at a time, give the metrics of those kept in
memory."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from harness.config import AllocatorConfig, ExecutorConfig, KVConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.measure import record_files
from harness.measure.metrics import Metrics, PoolFacts, ServiceLevel, compute_metrics
from harness.measure.record_files import KeptRecords, RecordFiles, RecordSink
from harness.measure.records import requests_frame, steps_frame
from harness.runs.build import prepare
from harness.runs.one_run import make_workload, simulated_device
from harness.workloads.config import WorkloadConfig

NUM_PAGES = 40
POOL = PoolFacts(NUM_PAGES, 16, 1024)
SLO = ServiceLevel(ttft_ms=2000.0)
CONFIG = RunConfig(
    allocator=AllocatorConfig("paged"),
    kv=KVConfig(pool_tokens=NUM_PAGES * 16),
    model=model_preset("small"),
    executor=ExecutorConfig("simulated", cost="roofline"),
    workload=WorkloadConfig(
        num_requests=40, lengths="sharegpt", length_scale=0.25, arrivals="poisson", rate=1000.0
    ),
)


def serve(config: RunConfig, seed: int, sink: RecordSink) -> None:
    device = simulated_device(config)
    own = dataclasses.replace(config, seed=seed)
    prepare(own, make_workload(own, device), NUM_PAGES, device, sink).run()


def kept_metrics(config: RunConfig, seed: int) -> Metrics:
    kept = KeptRecords()
    serve(config, seed, kept)
    steps = steps_frame(kept.steps, kept.entries, kept.draft_entries)
    return compute_metrics(steps, requests_frame(kept.requests), POOL, SLO)


@pytest.fixture(params=["at once", "a few at a time"])
def _flush(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a few at a time":
        monkeypatch.setattr(record_files, "_STEPS_AT_ONCE", 7)
        monkeypatch.setattr(record_files, "_TOKENS_AT_ONCE", 50)


@pytest.mark.usefixtures("_flush")
@pytest.mark.parametrize("method", ["none", "draft_model"])
def test_files_give_the_metrics_of_what_was_recorded(tmp_path: Path, method: str) -> None:
    speculation = SpeculationConfig()
    if method == "draft_model":
        speculation = SpeculationConfig("draft_model", draft="small_draft", acceptance=0.5)
    config = dataclasses.replace(
        CONFIG, engine=dataclasses.replace(CONFIG.engine, speculation=speculation)
    )
    with RecordFiles(tmp_path) as files:
        for seed in (0, 1):
            files.begin_repetition()
            serve(config, seed, files)
    for seed in (0, 1):
        found = compute_metrics(files.steps_of(seed), files.requests_of(seed), POOL, SLO)
        expected = kept_metrics(config, seed)
        assert expected.preemptions > 0
        assert (expected.draft_utilisation > 0) == (method == "draft_model")
        for field in dataclasses.fields(Metrics):
            mine, theirs = getattr(found, field.name), getattr(expected, field.name)
            if field.name == "allocator_us_per_step" or math.isnan(theirs):
                continue  # the only one that is a wall time
            assert mine == pytest.approx(theirs, rel=1e-9), field.name
    steps = pd.read_parquet(tmp_path / "steps.parquet")
    assert steps.groupby("repetition")["step"].is_monotonic_increasing.all()


def test_a_run_in_which_nothing_ran_has_files(tmp_path: Path) -> None:
    with RecordFiles(tmp_path) as files:
        files.begin_repetition()
    for name in ("steps", "requests"):
        assert pd.read_parquet(tmp_path / f"{name}.parquet").empty

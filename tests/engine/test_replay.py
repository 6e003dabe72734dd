"""A real run's log, replayed without its device, gives the same allocator calls and steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from experiments.modes.cases import FAMILIES, PAGE_SIZE, Mode, modes, save_near_draft
from harness.config import (
    AllocatorConfig,
    DeviceConfig,
    EngineConfig,
    KVConfig,
    MeasureConfig,
    RunConfig,
)
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.outcome_log import Replay, ReplayError
from harness.engine.request import Workload
from harness.engine.scheduling import scheduler
from harness.measure.outcome_rows import from_rows, to_rows
from harness.measure.record_files import KeptRecords
from harness.runs.build import PreparedRun, prepare
from harness.runs.one_run import simulated_device
from harness.runs.torch_device import TorchDevice

CPU = DeviceConfig("cpu", threads=1)
STRATEGIES = (
    AllocatorConfig("contiguous", "predicted", 0.6, 0.5, options={"fit": "best_fit"}),
    AllocatorConfig("paged"),
    AllocatorConfig("paged_cow"),
    AllocatorConfig("paged_prefix"),
)
ARRIVALS_APART_S = 0.004
SCHEDULES = ("mixed_chunked", "mixed_unchunked", "prefill_first", "static")


class Served(NamedTuple):
    run: PreparedRun
    records: KeptRecords


class Stage(NamedTuple):
    """Models, and ways of decoding by name."""

    device: TorchDevice
    windowed: TorchDevice
    modes: dict[str, Mode]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("draft")
    save_near_draft(FAMILIES["llama"], folder)
    found = {mode.name: mode for mode in modes(FAMILIES["llama"], folder)}
    found |= {
        f"window: {mode.name}": mode
        for mode in modes(FAMILIES["gemma2"], folder)
        if mode.name not in ("speculative, draft model",)
    }
    devices = (TorchDevice(FAMILIES[name], CPU) for name in ("llama", "gemma2"))
    yield Stage(*devices, found)


def config_of(name: str, mode: Mode, strategy: AllocatorConfig, engine: EngineConfig) -> RunConfig:
    return RunConfig(
        allocator=strategy,
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=mode.pool_tokens),
        engine=engine,
        model=FAMILIES["gemma2" if name.startswith("window") else "llama"],
        device=CPU,
        measure=MeasureConfig(outcome_log=True),
    )


def open_loop(mode: Mode) -> Workload:
    """Arrivals while others run: which step they come before is up to the machine."""
    requests = tuple(
        replace(request, arrival_s=index * ARRIVALS_APART_S)
        for index, request in enumerate(mode.requests)
    )
    return Workload(mode.name, requests, mode.name)


def serve(stage: Stage, name: str, config: RunConfig) -> Served:
    mode, records = stage.modes[name], KeptRecords()
    device = stage.windowed if name.startswith("window") else stage.device
    pages = mode.pool_tokens // PAGE_SIZE
    run = prepare(config, open_loop(mode), pages, device, records)
    try:
        run.run()
    finally:
        run.executor.close()
    return Served(run, records)


def decide_again(stage: Stage, name: str, config: RunConfig, real: Served) -> Served:
    mode, records = stage.modes[name], KeptRecords()
    assert real.run.outcome_log is not None and real.run.decisions is not None
    stored = to_rows(real.run.outcome_log, real.run.decisions.digests)
    log, digests = from_rows(stored)
    assert digests == real.run.decisions.digests
    pages = mode.pool_tokens // PAGE_SIZE
    device = simulated_device(config)
    run = prepare(config, open_loop(mode), pages, device, records, log)
    run.run()
    assert isinstance(run.arrivals, Replay)
    run.arrivals.check_end()
    return Served(run, records)


def assert_same_decisions(real: Served, again: Served) -> None:
    assert real.run.decisions is not None and again.run.decisions is not None
    assert real.run.decisions.digests == again.run.decisions.digests
    assert real.run.decisions.num_calls == again.run.decisions.num_calls > 0
    assert real.records.entries == again.records.entries
    assert real.records.draft_entries == again.records.draft_entries
    for mine, theirs in zip(real.records.requests, again.records.requests, strict=True):
        assert mine.request_id == theirs.request_id
        assert mine.chosen_ids == theirs.chosen_ids
        assert mine.num_preemptions == theirs.num_preemptions


MODES = (
    "greedy", "n=4 samples", "beam 4", "speculative, draft model", "speculative, n-gram",
    "chunked prefill", "preempted by swap", "preempted by recompute", "shared prefix",
    "window: sliding window", "window: preempted by swap", "window: beam 4",
)  # fmt: skip


def test_every_mode_is_replayed(stage: Stage) -> None:
    assert {name for name in stage.modes if not name.startswith("window")} <= set(MODES)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("name", MODES)
def test_a_log_replayed_decides_the_same(
    stage: Stage, name: str, strategy: AllocatorConfig
) -> None:
    config = config_of(name, stage.modes[name], strategy, stage.modes[name].engine)
    real = serve(stage, name, config)
    assert_same_decisions(real, decide_again(stage, name, config, real))


@pytest.mark.parametrize("name", ["greedy", "preempted by swap", "preempted by recompute"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_a_run_that_was_a_step_ahead_is_replayed_step_by_step(
    stage: Stage, name: str, strategy: AllocatorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(name, stage.modes[name], strategy, stage.modes[name].engine)
    monkeypatch.setattr(TorchExecutor, "works_apart", True)
    real = serve(stage, name, config)
    assert_same_decisions(real, decide_again(stage, name, config, real))


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_in_every_schedule(stage: Stage, schedule: str, preemption: str) -> None:
    name = "preempted by swap"
    mode = stage.modes[name]
    engine = replace(mode.engine, schedule=schedule, preemption=preemption)
    for strategy in STRATEGIES[::3]:
        config = config_of(name, mode, strategy, engine)
        real = serve(stage, name, config)
        assert_same_decisions(real, decide_again(stage, name, config, real))


def test_a_changed_scheduler_decides_otherwise(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "preempted by recompute"
    mode = stage.modes[name]
    config = config_of(name, mode, AllocatorConfig("paged"), mode.engine)
    real = serve(stage, name, config)
    assert_same_decisions(real, decide_again(stage, name, config, real))
    earliest = {**scheduler.VICTIM_POLICIES, "latest": lambda running: running[0]}
    monkeypatch.setattr(scheduler, "VICTIM_POLICIES", earliest)
    with pytest.raises((AssertionError, ReplayError)):
        assert_same_decisions(real, decide_again(stage, name, config, real))


def test_a_log_of_another_budget_is_told_where_it_parts(stage: Stage) -> None:
    name = "chunked prefill"
    mode = stage.modes[name]
    config = config_of(name, mode, AllocatorConfig("paged"), mode.engine)
    real = serve(stage, name, config)
    other = replace(config, engine=replace(mode.engine, token_budget=200))
    with pytest.raises(ReplayError, match=r"step \d+: "):
        decide_again(stage, name, other, real)

"""Whole runs with captured decode steps: the tokens of runs without, in every way of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from experiments.modes.cases import FAMILIES, PAGE_SIZE, Mode, modes, save_near_draft
from harness.config import AllocatorConfig, DeviceConfig, KVConfig, RunConfig
from harness.engine.device.capture import graph_sizes
from harness.engine.device.torch_executor import PendingTokens, TorchExecutor
from harness.engine.plan import PENDING_TOKEN, StepPlan
from harness.engine.request import Workload
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice

CPU = DeviceConfig("cpu", threads=1)
STRATEGIES = (
    AllocatorConfig("contiguous", "oracle", options={"fit": "first_fit"}),
    AllocatorConfig("paged"),
    AllocatorConfig("paged_cow"),
    AllocatorConfig("paged_prefix"),
)
Stage = tuple[dict[str, Mode], dict[bool, TorchDevice], dict[bool, TorchDevice]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("draft")
    save_near_draft(FAMILIES["llama"], folder)
    found = {mode.name: mode for mode in modes(FAMILIES["llama"], folder)}
    found |= {f"window: {mode.name}": mode for mode in modes(FAMILIES["gemma2"], folder)}
    plain, windowed = (
        {on: TorchDevice(FAMILIES[name], CPU, rehearses_graphs=on) for on in (False, True)}
        for name in ("llama", "gemma2")
    )
    yield found, plain, windowed


def outputs(device: TorchDevice, mode: Mode, config: RunConfig) -> tuple[dict[int, list[int]], int]:
    """Tokens by request, and how many graphs there were."""
    records = KeptRecords()
    workload = Workload(mode.name, mode.requests, mode.name)
    run = prepare(config, workload, mode.pool_tokens // PAGE_SIZE, device, records)
    try:
        run.run()
        assert mode.count(run) > 0 or not mode.must_happen(config.allocator.name)
    finally:
        run.executor.close()
    chosen = {record.request_id: record.chosen_ids for record in records.requests}
    return chosen, len(run.executor.captured.sizes)


EVERY_STRATEGY = ("greedy", "preempted by recompute")
MODES = (
    "n=4 samples", "beam 4", "speculative, draft model", "chunked prefill", "preempted by swap",
    "shared prefix", "window: sliding window", "window: preempted by swap",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, strategy) for name in EVERY_STRATEGY for strategy in STRATEGIES),
        *((name, STRATEGIES[-1 if name == "shared prefix" else 1]) for name in MODES),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_tokens_are_those_without_graphs(
    stage: Stage, name: str, strategy: AllocatorConfig
) -> None:
    found, *devices = stage
    mode, is_windowed = found[name], name.startswith("window")
    samples = any(request.sampling.temperature > 0 for request in mode.requests)
    config = RunConfig(
        allocator=strategy,
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=mode.pool_tokens),
        engine=mode.engine,
        model=FAMILIES["gemma2" if is_windowed else "llama"],
        device=CPU,
    )
    if samples:
        config = replace(config, workload=replace(config.workload, temperature=0.9))
    expected, no_graphs = outputs(devices[is_windowed][False], mode, config)
    got, num_graphs = outputs(devices[is_windowed][True], mode, config)
    assert (no_graphs, num_graphs) == (0, len(graph_sizes(mode.engine.max_num_seqs)))
    assert got == expected


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["greedy", "n=4 samples", "preempted by swap", "shared prefix"])
def test_tokens_are_those_of_steps_that_wait(
    stage: Stage, name: str, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that takes its input from the outputs of the one before, which nobody has read."""
    found, devices, _ = stage
    mode = found[name]
    config = RunConfig(
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=mode.pool_tokens),
        engine=mode.engine,
        model=FAMILIES["llama"],
        device=CPU,
    )
    submit, num_pending = TorchExecutor.submit, 0

    def watched(executor: TorchExecutor, plan: StepPlan) -> PendingTokens:
        nonlocal num_pending
        num_pending += sum(chunk.token_ids[-1] == PENDING_TOKEN for chunk in plan.chunks)
        return submit(executor, plan)

    monkeypatch.setattr(TorchExecutor, "submit", watched)
    expected, _ = outputs(devices[False], mode, config)
    assert num_pending == 0
    monkeypatch.setattr(TorchExecutor, "works_apart", True)
    assert outputs(devices[graphs], mode, config)[0] == expected
    assert num_pending > 10


def test_graphs_can_be_turned_off(stage: Stage) -> None:
    found, plain, _ = stage
    mode = found["greedy"]
    config = RunConfig(
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=mode.pool_tokens),
        engine=replace(mode.engine, cuda_graph=False),
        model=FAMILIES["llama"],
        device=CPU,
    )
    assert outputs(plain[True], mode, config)[1] == 0

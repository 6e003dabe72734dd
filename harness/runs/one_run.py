"""One run: its repetitions, from a config to records."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from harness.config import ConfigError, RunConfig, to_mapping
from harness.engine.device.model_shape import model_shape
from harness.engine.request import Workload
from harness.measure.environment import Environment, capture_environment
from harness.measure.metrics import PoolFacts, ServiceLevel, compute_metrics
from harness.measure.records import requests_frame, steps_frame
from harness.runs.build import Device, SimulatedDevice, prepare
from harness.runs.gpu_memory import simulated_memory_bytes
from harness.runs.pool_size import (
    draft_bytes_per_token,
    kv_bytes_per_token,
    longest_request_len,
    pool_pages,
)
from harness.runs.store import RunRecord
from harness.workloads.generate import generate


def make_workload(config: RunConfig, device: Device, seed: int) -> Workload:
    """The requests of one repetition; they depend on the config's workload and seed alone."""
    return generate(
        config.workload,
        seed=seed,
        vocab_size=device.shape.vocab_size,
        tokenizer=device.tokenizer,
        eos_ids=device.eos_ids,
        longest_len=longest_request_len(config, device.shape),
    )


def simulated_device(config: RunConfig) -> SimulatedDevice:
    """The stand-in for a device of `config`'s model, with imagined memory if any, else that of
    its GPUs if they have a name."""
    return SimulatedDevice(model_shape(config.model), simulated_memory_bytes(config))


def execute_run(
    config: RunConfig, run_id: str, label: str, device: Device, environment: Environment
) -> RunRecord:
    """Run every repetition on `device` and collect records and metrics."""
    begin = time.perf_counter()
    summaries: list[Mapping[str, Any]] = []
    steps: list[pd.DataFrame] = []
    requests: list[pd.DataFrame] = []
    maps: list[pd.DataFrame] = []
    for repetition in range(config.repetitions):
        seed = config.seed + repetition
        run = _run_repetition(config, device, seed)
        summaries.append({"repetition": repetition, "seed": seed, **run.summary})
        for frame, frames in ((run.steps, steps), (run.requests, requests), (run.memory_map, maps)):
            if frame is not None:
                frame.insert(0, "repetition", repetition)
                frames.append(frame)
    return RunRecord(
        run_id=run_id,
        label=label,
        config=to_mapping(config),
        environment=environment,
        status="complete",
        error="",
        wall_s=time.perf_counter() - begin,
        summary=tuple(summaries),
        steps=pd.concat(steps, ignore_index=True),
        requests=pd.concat(requests, ignore_index=True),
        memory_map=pd.concat(maps, ignore_index=True) if maps else None,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Repetition:
    summary: dict[str, Any]
    steps: pd.DataFrame
    requests: pd.DataFrame
    memory_map: pd.DataFrame | None


def _run_repetition(config: RunConfig, device: Device, seed: int) -> _Repetition:
    workload = make_workload(config, device, seed)
    num_pages = pool_pages(config, device.shape, workload, device.memory_bytes)
    prepared = prepare(config, workload, num_pages, device, seed)
    try:
        prepared.engine.run(workload)
        prepared.recorder.close()
        peak_bytes = _peak_bytes(device)
    finally:
        prepared.executor.close()
    recorder = prepared.recorder
    steps = steps_frame(recorder.steps, recorder.entries, recorder.draft_entries)
    requests = requests_frame(recorder.requests)
    _check_served(requests)
    pool = PoolFacts(
        num_pages,
        config.kv.page_size,
        kv_bytes_per_token(config, device.shape),
        draft_bytes_per_token(config),
        prepared.num_layer_groups,
    )
    slo = ServiceLevel(
        config.measure.slo_ttft_ms or math.inf,
        config.measure.slo_tpot_ms or math.inf,
        config.measure.slo_normalised_ms or math.inf,
    )
    metrics = compute_metrics(steps, requests, pool, slo)
    summary = {
        **{f.name: getattr(metrics, f.name) for f in dataclasses.fields(metrics)},
        "peak_memory_bytes": peak_bytes,
        "workload_description": workload.description,
    }
    memory_map = prepared.memory_map.frame() if prepared.memory_map else None
    return _Repetition(summary, steps, requests, memory_map)


def _check_served(requests: pd.DataFrame) -> None:
    """A run that served nobody has nothing to compare."""
    if len(requests) and (requests["status"] == "refused").all():
        raise ConfigError(
            f"none of {len(requests)} requests could be served; the first "
            f"{requests['reason'].iloc[0]}"
        )


def _peak_bytes(device: Device) -> int | None:
    measure: Callable[[], int] | None = getattr(device, "peak_memory_bytes", None)
    return measure() if measure is not None else None


def environment_of(device: Device) -> Environment:
    """The environment of runs on `device`."""
    return capture_environment(getattr(device, "name", "simulated"), getattr(device, "threads", 1))

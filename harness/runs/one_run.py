"""One run: its repetitions, from a config to records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd

from harness.config import ConfigError, RunConfig
from harness.conversion import to_stored
from harness.engine.device.model_shape import model_shape
from harness.engine.executor import CaptureReport
from harness.engine.request import Workload
from harness.measure.environment import Environment, capture_environment
from harness.measure.fleet import replica_rows
from harness.measure.interference import Interference
from harness.measure.metrics import PoolFacts, ServiceLevel, compute_metrics
from harness.measure.outcome_rows import to_rows
from harness.measure.record_files import RecordFiles, RecordSink, without_tokens
from harness.runs.build import PreparedRun, SimulatedDevice, WatchedRun, prepare
from harness.runs.fleet import WatchedFleet, prepare_fleet
from harness.runs.gpu_memory import simulated_memory_bytes
from harness.runs.live import LiveBoard, LiveRun, Watched
from harness.runs.out_of_memory import explained
from harness.runs.pool_size import (
    BesidePool,
    draft_bytes_per_token,
    is_what_memory_leaves,
    kv_bytes_per_token,
    longest_request_len,
    pool_pages,
)
from harness.runs.store import RunRecord
from harness.runs.surroundings import Device
from harness.workloads.digest import requests_digest
from harness.workloads.generate import generate


def make_workload(config: RunConfig, device: Device) -> Workload:
    """The requests of one repetition, which no strategy changes. Where workload.fit_len is None,
    a trace is fitted to the run's own pool: `plan_study` sets it for all cells of a table."""
    return generate(
        config.cluster.workload(config.workload),
        seed=config.seed,
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
    config: RunConfig,
    run_id: str,
    label: str,
    device: Device,
    environment: Environment,
    folder: Path,
    board: LiveBoard | None = None,
) -> RunRecord:
    """Run every repetition on `device`; records go to files in `folder`, where what is returned
    says they are. board: shows how far it is."""
    live = None if board is None else LiveRun(board, config.repetitions)
    begin = perf_counter()
    outcomes: list[_Outcome] = []
    with RecordFiles(folder) as files:
        for repetition in range(config.repetitions):
            files.begin_repetition()
            own = dataclasses.replace(config, seed=config.seed + repetition)
            outcomes.append(_run_repetition(own, device, files, live))
    summaries = tuple(
        {
            "repetition": repetition,
            "seed": config.seed + repetition,
            "model_dtype_bytes": device.shape.dtype_bytes,
            **_summary(config, outcome, files, repetition),
        }
        for repetition, outcome in enumerate(outcomes)
    )
    return RunRecord(
        run_id=run_id,
        label=label,
        config=to_stored(config),
        environment=environment,
        status="complete",
        error="",
        wall_s=perf_counter() - begin,
        summary=summaries,
        steps=folder / "steps.parquet",
        requests=folder / "requests.parquet",
        replicas=_joined(
            [_replicas(outcome, files, number) for number, outcome in enumerate(outcomes)]
        ),
        memory_map=_joined([outcome.memory_map for outcome in outcomes]),
        step_work=_joined([outcome.step_work for outcome in outcomes]),
        outcome_log=_joined([outcome.outcome_log for outcome in outcomes]),
    )


def _joined(frames: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Those of all repetitions, with a column `repetition`; None where there are none."""
    numbered = [
        frame.assign(repetition=repetition)
        for repetition, frame in enumerate(frames)
        if frame is not None
    ]
    return pd.concat(numbered, ignore_index=True) if numbered else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """What a repetition leaves beside its records."""

    pool: PoolFacts
    beside: BesidePool | None
    peak_bytes: int | None
    extrapolated_share: float
    description: str
    requests_digest: str
    memory_map: pd.DataFrame | None = None
    step_work: pd.DataFrame | None = None
    outcome_log: pd.DataFrame | None = None
    timing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    captured: CaptureReport = dataclasses.field(default_factory=CaptureReport)


def _run_repetition(
    config: RunConfig, device: Device, sink: RecordSink, live: LiveRun | None
) -> _Outcome:
    workload = make_workload(config, device)
    memory_bytes = device.memory_bytes
    beside = None
    if is_what_memory_leaves(config, memory_bytes):
        longest_len = max((outline.max_len for outline in workload.outlines()), default=1)
        beside = device.beside_pool(config, longest_len)
    num_pages = pool_pages(config, device.shape, workload, memory_bytes, beside)
    kv_bytes, draft_bytes = kv_bytes_per_token(config, device.shape), draft_bytes_per_token(config)
    pool_bytes = num_pages * config.kv.page_size * (kv_bytes + draft_bytes)
    pool = PoolFacts(
        num_pages,
        config.kv.page_size,
        kv_bytes,
        draft_bytes,
        num_replicas=config.cluster.replicas,
    )
    repetition = _Repetition(config, workload, device, sink, live, pool, beside)
    with explained(config, pool_bytes, beside):
        return repetition.run_fleet() if pool.num_replicas > 1 else repetition.run_engine()


class _Repetition(NamedTuple):
    """What a repetition is made of."""

    config: RunConfig
    workload: Workload
    device: Device
    sink: RecordSink
    live: LiveRun | None
    pool: PoolFacts
    beside: BesidePool | None

    def run_engine(self) -> _Outcome:
        pool = self.pool
        prepared = prepare(self.config, self.workload, pool.num_pages, self.device, self.sink)
        try:
            with self._watching(WatchedRun(prepared, pool.num_pages, pool.page_size)):
                found = prepared.run()
            peak_bytes = _peak_bytes(self.device)
        finally:
            prepared.executor.close()
        outcome_log = None
        if prepared.outcome_log is not None and prepared.decisions is not None:
            outcome_log = to_rows(prepared.outcome_log, prepared.decisions.digests)
        return _Outcome(
            dataclasses.replace(pool, num_groups=prepared.num_layer_groups),
            self.beside,
            peak_bytes,
            getattr(prepared.executor, "extrapolated_share", math.nan),
            self.workload.description,
            requests_digest(self.workload),
            prepared.memory_map.frame() if prepared.memory_map else None,
            prepared.work_log.frame() if prepared.work_log else None,
            outcome_log,
            _timing(prepared, found) if prepared.is_timed else {},
            getattr(prepared.executor, "captured", CaptureReport()),
        )

    def run_fleet(self) -> _Outcome:
        pool = self.pool
        prepared = prepare_fleet(self.config, self.workload, pool.num_pages, self.device, self.sink)
        try:
            with self._watching(WatchedFleet(prepared, pool.num_pages, pool.page_size)):
                prepared.run()
        finally:
            prepared.close()
        return _Outcome(
            dataclasses.replace(pool, num_groups=prepared.num_layer_groups),
            self.beside,
            None,
            prepared.extrapolated_share,
            self.workload.description,
            requests_digest(self.workload),
        )

    def _watching(self, watched: Watched) -> AbstractContextManager[None]:
        return nullcontext() if self.live is None else self.live.repetition(watched, self.workload)


def _summary(
    config: RunConfig, outcome: _Outcome, files: RecordFiles, repetition: int
) -> dict[str, Any]:
    """The metrics of a repetition, from its records."""
    slo = ServiceLevel(
        config.measure.slo_ttft_ms or math.inf,
        config.measure.slo_tpot_ms or math.inf,
        config.measure.slo_normalised_ms or math.inf,
    )
    requests = files.requests_of(repetition)
    _check_served(requests.frame(["status", "reason"]))
    metrics = compute_metrics(files.steps_of(repetition), requests, outcome.pool, slo)
    return {
        **{f.name: getattr(metrics, f.name) for f in dataclasses.fields(metrics)},
        "peak_memory_bytes": outcome.peak_bytes,
        "activation_bytes": outcome.beside and outcome.beside.activation_bytes,
        "activation_source": outcome.beside and outcome.beside.source,
        "extrapolated_share": outcome.extrapolated_share,
        "graph_capture_s": outcome.captured.seconds,
        "graph_memory_bytes": outcome.captured.num_bytes,
        "num_graphs": len(outcome.captured.sizes),
        "workload_description": outcome.description,
        "requests_digest": outcome.requests_digest,
        **outcome.timing,
    }


def _timing(run: PreparedRun, found: Interference) -> dict[str, Any]:
    """What stands beside the times of a timed repetition (docs/statistics.md)."""
    return {
        "others_share": found.others_share,
        "own_cpu_s": found.own_cpu_s,
        "schedule_digest": run.recorder.schedule_digest,
    }


def _replicas(outcome: _Outcome, files: RecordFiles, repetition: int) -> pd.DataFrame | None:
    """Of a fleet, what each replica did."""
    count = outcome.pool.num_replicas
    if count == 1:
        return None
    requests = without_tokens(files.requests_of(repetition))
    return replica_rows(files.steps_of(repetition), requests, count)


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

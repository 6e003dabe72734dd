"""Fleets of engines whose every part is in reach, on the simulated executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulated_run import Setup, SimulatedRun

from harness.cluster.fleet import Fleet, Replica
from harness.cluster.router import Replicas, Router
from harness.engine.arrivals import RequestSource
from harness.engine.engine import Engine
from harness.engine.executor import Executor
from harness.engine.request import Request, Workload
from harness.measure.ledger import LedgerEntry
from harness.measure.records import RequestRecord, StepRecord

Records = tuple[list[StepRecord], list[LedgerEntry], list[RequestRecord]]


def records_of(run: SimulatedRun) -> Records:
    """All that a run left, but for the host's own time, and the device's where nobody knows it."""
    sink = run.recorder.sink
    steps = [
        step._replace(
            allocator_us=0.0,
            host_us=0.0,
            device_us=0.0 if math.isnan(step.device_us) else step.device_us,
        )
        for step in sink.steps
    ]
    return steps, sink.entries, sink.requests


def run_fleet(
    setup: Setup,
    make_router: Callable[[Replicas], Router],
    count: int,
    requests: Sequence[Request],
    closed_loop: int | None = None,
    make_executor: Callable[[int], Executor | None] = lambda replica: None,
) -> list[SimulatedRun]:
    """Serve `requests` by as many runs of `setup`, each with its own executor."""
    runs = [SimulatedRun(setup, make_executor(replica)) for replica in range(count)]
    engines = [
        Engine(run.scheduler, run.executor, run.clock, run.recorder, run.limits, run.allocator)
        for run in runs
    ]
    replicas = [Replica(e, run.scheduler) for e, run in zip(engines, runs, strict=True)]
    source = RequestSource(Workload("test", tuple(requests), "test", closed_loop))
    slots = setup.num_pages * setup.page_size
    Fleet(replicas, source, make_router, setup.page_size, slots).run()
    for run in runs:
        run.recorder.close()
    return runs

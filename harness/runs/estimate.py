"""How long a sweep will take, roughly: from like runs already stored, else from sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from harness.config import RunConfig
from harness.engine.device.model_shape import model_shape
from harness.runs.jobs import Job
from harness.runs.store import RunStore

_SIMULATED_S_PER_TOKEN = 4e-6
_SIMULATED_S_PER_RUN = 0.05
_MODEL_FLOPS = 1e11
_MEAN_TOKENS = {"sharegpt": 499.0, "alpaca_like": 78.0}
_WORKER_START_S = {True: 8.0, False: 3.0}


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def estimate_wall_s(pending: Sequence[Job], jobs: Sequence[Job]) -> float:
    """Seconds until `pending` are done on this machine."""
    known: dict[bool, list[float]] = {True: [], False: []}
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is not None and run.status == "complete":
            known[job.is_timed].append(run.wall_s)
    total = 0.0
    for is_timed in (False, True):
        group = [job for job in pending if job.is_timed == is_timed]
        if not group:
            continue
        if known[is_timed]:
            each = sum(known[is_timed]) / len(known[is_timed])
            seconds = sum(_num_runs(job) * each for job in group)
        else:
            seconds = sum(_num_runs(job) * _guess(job.config) for job in group)
        share = 1 if is_timed else min(usable_cores(), len(group))
        total += seconds / share + _WORKER_START_S[is_timed]
    return total


def _num_runs(job: Job) -> int:
    """A probe that is not stored stands for its search."""
    return 1 if job.search is None else job.search.most_probes


def _guess(config: RunConfig) -> float:
    workload = config.workload
    mean = _MEAN_TOKENS.get(workload.lengths, workload.prompt_mean + workload.output_mean)
    num_tokens = (workload.num_requests or 1000) * mean * workload.scale
    num_tokens *= config.repetitions
    if config.executor.kind == "simulated":
        return num_tokens * _SIMULATED_S_PER_TOKEN + config.repetitions * _SIMULATED_S_PER_RUN
    return num_tokens * 2 * model_shape(config.model).num_parameters / _MODEL_FLOPS

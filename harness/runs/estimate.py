"""How long a sweep will take, roughly: from like runs already stored, else from sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from harness.config import RunConfig
from harness.engine.device.model_shape import model_shape
from harness.runs.jobs import Job
from harness.runs.store import RunStore
from harness.workloads.config import WorkloadConfig

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


class Forecast:
    """Time that runs will take: guessed from their sizes, in proportion to what those have taken
    that are done. Timed and simulated runs are told apart."""

    def __init__(self) -> None:
        self._guesses: dict[str, float] = {}
        self._guessed = {True: 0.0, False: 0.0}
        self._taken = {True: 0.0, False: 0.0}

    def learn(self, job: Job, wall_s: float) -> None:
        """A run has taken so long."""
        self._guessed[job.is_timed] += self._guess(job)
        self._taken[job.is_timed] += wall_s

    def seconds(self, job: Job) -> float:
        """For one run."""
        guessed, taken = self._guessed[job.is_timed], self._taken[job.is_timed]
        return self._guess(job) * (taken / guessed if guessed > 0 else 1.0)

    def left_s(self, jobs: Iterable[Job], shares_done: Mapping[str, float] | None = None) -> float:
        """For runs that are not done, side by side as a sweep does them. shares_done: of those
        under way, by run id. A probe that is not stored stands for its search."""
        done = shares_done or {}
        left, count = {True: 0.0, False: 0.0}, {True: 0, False: 0}
        for job in jobs:
            share = 1 - done.get(job.run_id, 0.0)
            left[job.is_timed] += share * self.seconds(job) * _num_runs(job)
            count[job.is_timed] += 1
        return left[True] + left[False] / max(1, min(usable_cores(), count[False]))

    def _guess(self, job: Job) -> float:
        if job.run_id not in self._guesses:
            self._guesses[job.run_id] = _guess(job.config)
        return self._guesses[job.run_id]


def forecast_from(jobs: Iterable[Job]) -> Forecast:
    """What those of `jobs` that are stored and complete tell."""
    forecast = Forecast()
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is not None and run.status == "complete":
            forecast.learn(job, run.wall_s)
    return forecast


def estimate_wall_s(pending: Sequence[Job], jobs: Sequence[Job]) -> float:
    """Seconds until `pending` are done on this machine, with the start of workers."""
    starts = sum(_WORKER_START_S[is_timed] for is_timed in {job.is_timed for job in pending})
    return forecast_from(jobs).left_s(pending) + starts


def _num_runs(job: Job) -> int:
    return 1 if job.search is None else job.search.most_probes


def _mean_tokens(workload: WorkloadConfig) -> float:
    """Of a request, prompt and output, before scaling."""
    shared = 0 if workload.sharing == "chat" else workload.shared_len
    match workload.lengths:
        case "fixed":
            return shared + workload.prompt_len + workload.output_len
        case "uniform":
            prompts = workload.prompt_min + workload.prompt_max
            return shared + (prompts + workload.output_min + workload.output_max) / 2
        case lengths:
            mean = workload.prompt_mean + workload.output_mean
            return shared + _MEAN_TOKENS.get(lengths, mean)


def _guess(config: RunConfig) -> float:
    workload = config.cluster.workload(config.workload)
    num_tokens = (workload.num_requests or 1000) * _mean_tokens(workload) * workload.scale
    num_tokens *= config.repetitions
    if config.executor.kind == "simulated":
        return num_tokens * _SIMULATED_S_PER_TOKEN + config.repetitions * _SIMULATED_S_PER_RUN
    return num_tokens * 2 * model_shape(config.model).num_parameters / _MODEL_FLOPS

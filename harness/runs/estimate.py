"""How long a sweep will take, roughly: from like runs already stored, else from sizes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from harness.config import RunConfig
from harness.engine.device.model_shape import model_shape
from harness.runs.jobs import Job
from harness.runs.store import RunStore
from harness.workloads.config import WorkloadConfig

_MEAN_LENS = {"sharegpt": (161.0, 338.0), "alpaca_like": (19.0, 58.0)}
"""Prompt and output, of the workloads whose lengths are not keys."""

_LONGEST_SHARE = 0.25
"""Of a workload's bound on lengths: a mean is hardly more where longer requests are left out."""

_SMALL_PARAMETERS = 32e6
_HOST_S = {"run": 0.15, "step": 1e-3, "token": 10e-6}
_MODEL_S = {"step": 3e-3, "token": 0.14e-3}
"""What a model of so many parameters takes on two cores; another one in proportion."""

_SIMULATED_S = {"run": 0.05, "step": 25e-6, "token": 3.5e-6, "page": 10e-6}
"""page: a token in pages of one."""

_WORKER_START_S = {True: 8.0, False: 3.0}
_TABLES_S = 6.0
"""What tables and figures take once all runs are there."""


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Forecast:
    """Time that runs will take: guessed from their sizes, in proportion to what those have taken
    that are done. Timed and simulated runs are told apart; as long as none of the one kind is done,
    those of the other tell how fast the machine is."""

    def __init__(self) -> None:
        self._guesses: dict[str, float] = {}
        self._learned: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

    def learn(self, job: Job, wall_s: float) -> None:
        """A run has taken so long."""
        self._learned[job.is_timed].append((self._guess(job), wall_s))

    def seconds(self, job: Job) -> float:
        """For one run."""
        own = _pace(self._learned[job.is_timed])
        others = _pace(self._learned[not job.is_timed])
        if len(self._learned[job.is_timed]) == 1 and others:  # it may have compiled kernels
            own = min(own, others)
        return self._guess(job) * (own or others or 1.0)

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
            self._guesses[job.run_id] = seconds_of(job.config)
        return self._guesses[job.run_id]


def _pace(learned: Sequence[tuple[float, float]]) -> float:
    """What runs took over what was guessed, but for the slowest of several; 0 for none."""
    known = sorted(learned, key=lambda each: each[1] / each[0])
    known = known[:-1] or known
    return sum(taken for _, taken in known) / sum(guess for guess, _ in known) if known else 0.0


def forecast_from(jobs: Iterable[Job]) -> Forecast:
    """What those of `jobs` that are stored and complete tell."""
    forecast = Forecast()
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is not None and run.status == "complete":
            forecast.learn(job, run.wall_s)
    return forecast


def estimate_wall_s(pending: Sequence[Job], jobs: Sequence[Job]) -> float:
    """Seconds until `pending` are done on this machine and shown, with the start of workers."""
    return forecast_from(jobs).left_s(pending) + overhead_s({job.is_timed for job in pending})


def overhead_s(kinds: Iterable[bool]) -> float:
    """Beside the runs: the start of workers for these kinds (timed or not), and the tables."""
    return sum(_WORKER_START_S[is_timed] for is_timed in kinds) + _TABLES_S


def _num_runs(job: Job) -> int:
    return 1 if job.search is None else job.search.most_probes


class _Work(NamedTuple):
    """Of one repetition, roughly. tokens: that are computed; mapped: with those of a prefix that
    others have computed."""

    tokens: float
    mapped: float
    steps: float


def _mean_lens(workload: WorkloadConfig) -> tuple[float, float]:
    """Prompt and output of a request, before scaling; a shared beginning left aside."""
    longest = math.inf if workload.max_len is None else _LONGEST_SHARE * workload.max_len
    match workload.lengths:
        case "fixed":
            return workload.prompt_len, workload.output_len
        case "uniform":
            return (
                (workload.prompt_min + workload.prompt_max) / 2,
                (workload.output_min + workload.output_max) / 2,
            )
        case lengths:
            prompt, output = _MEAN_LENS.get(lengths, (workload.prompt_mean, workload.output_mean))
            return min(prompt, longest), min(output, longest)


def _work(config: RunConfig) -> _Work:
    """All requests at once, as many side by side as the pool has room for, and the last ones with
    ever fewer beside them."""
    workload = config.cluster.workload(config.workload)
    num_requests = workload.num_requests or 1000
    prompt, output = (workload.scale * length for length in _mean_lens(workload))
    output *= workload.num_sequences
    shared = 0.0 if workload.sharing == "chat" else workload.scale * workload.shared_len
    whole = prompt + workload.shared_fraction * shared
    if config.allocator.name not in _SHARING:
        prompt, shared = whole, 0.0
    held = prompt + output / 2 + config.kv.page_size / 2
    if config.allocator.expected != "none":
        held = 1.5 * (prompt + output)
    if config.allocator.expected == "max" and workload.max_len is not None:
        held = workload.scale * workload.max_len
    pool = config.kv.pool_tokens or math.inf
    batch = max(1.0, min((pool - shared) / held, num_requests, config.engine.max_num_seqs))
    steps = num_requests * output / batch / workload.num_sequences + 1.5 * output
    return _Work(num_requests * (prompt + output), num_requests * (whole + output), steps)


_SHARING = ("paged_cow", "paged_prefix")
"""Strategies that keep and compute what requests share once."""


def seconds_of(config: RunConfig) -> float:
    """What a run takes on two cores that nobody else uses, from its size alone."""
    work = _work(config)
    if config.executor.kind == "simulated":
        cost = _SIMULATED_S
        tokens = work.mapped * (cost["token"] + cost["page"] / config.kv.page_size)
        return config.repetitions * (cost["run"] + work.steps * cost["step"] + tokens)
    cost, host = _MODEL_S, _HOST_S
    size = model_shape(config.model).num_parameters / _SMALL_PARAMETERS
    of_model = size * (work.steps * cost["step"] + work.tokens * cost["token"])
    of_host = host["run"] + work.steps * host["step"] + work.tokens * host["token"]
    return config.repetitions * (of_host + of_model)

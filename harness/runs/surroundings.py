"""What a run is told of the world: arrivals, clock and device, real, simulated or replayed, and
whoever listens on the way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from harness.config import RunConfig
from harness.engine.arrivals import ArrivalSource, RequestSource
from harness.engine.clock import Clock, VirtualClock, WallClock
from harness.engine.cost.work_log import WorkLog
from harness.engine.device.model_shape import LayerGroup, ModelShape
from harness.engine.executor import Executor
from harness.engine.outcome_log import LoggedArrivals, LoggedExecutor, OutcomeLog, Replay
from harness.engine.request import Workload
from harness.measure.decisions import DecidedExecutor, Decisions
from harness.runs.pool_size import BesidePool
from harness.runs.step_cost import work_counter

MOST_BYTES_LEFT = 64 * 2**20
"""What a run may leave on a device: libraries take workspaces on first use and keep them."""


class Memory(Protocol):
    """What tells whether a run left something; see `harness.runs.device_memory.DeviceMemory`."""

    def allocated_bytes(self) -> int: ...

    def give_back(self) -> None: ...


class Device(Protocol):
    """What a worker keeps between runs: the model, and the memory it runs in."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def tokenizer(self) -> Any | None: ...

    @property
    def memory_bytes(self) -> int | None: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def memory(self) -> Memory | None:
        """Counters of the memory that runs are proved clean by, where there are any."""
        ...

    def own_cores(self) -> AbstractContextManager[None]:
        """Binds each computing thread to one core inside the block, if there are enough cores."""
        ...

    def is_clean(self) -> bool:
        """Nothing of the last run is left in that memory."""
        ...

    def close(self) -> None:
        """End the processes that it consists of beside this one, if there are any."""
        ...

    def abandon(self) -> None:
        """The same at once, from wherever this process is."""
        ...

    def beside_pool(self, config: RunConfig, longest_len: int) -> BesidePool: ...

    def executor(
        self, config: RunConfig, num_pages: int, max_len: int, groups: Sequence[LayerGroup] = ()
    ) -> Executor: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """device: the executor at the bottom; executor: the one that the engine talks to."""

    arrivals: ArrivalSource
    clock: Clock
    device: Executor
    executor: Executor
    work_log: WorkLog | None
    outcome_log: OutcomeLog | None


def real_surroundings(
    config: RunConfig,
    workload: Workload,
    device: Device,
    num_pages: int,
    groups: Sequence[LayerGroup],
    decisions: Decisions | None,
) -> Surroundings:
    """The workload's arrivals, and `device`'s executor on a pool of `num_pages`; with what
    `config.measure` asks for written down."""
    longest = max((outline.max_len for outline in workload.outlines()), default=1)
    max_len = min(longest, num_pages // len(groups) * config.kv.page_size)
    arrivals: ArrivalSource = RequestSource(workload)
    bottom = executor = device.executor(config, num_pages, max_len, groups)
    work_log = outcome_log = None
    if config.measure.step_work:
        executor = work_log = WorkLog(executor, work_counter(config, groups))
    if decisions is not None:
        outcome_log = OutcomeLog()
        executor = LoggedExecutor(DecidedExecutor(executor, decisions), outcome_log)
        arrivals = LoggedArrivals(arrivals, outcome_log)
    clock: Clock = VirtualClock() if config.executor.kind == "simulated" else WallClock()
    return Surroundings(arrivals, clock, bottom, executor, work_log, outcome_log)


def replayed_surroundings(
    workload: Workload, log: OutcomeLog, decisions: Decisions
) -> Surroundings:
    """What `log` tells, on a virtual clock."""
    replay = Replay(workload, log)
    executor = DecidedExecutor(replay, decisions)
    return Surroundings(replay, VirtualClock(), replay, executor, None, None)

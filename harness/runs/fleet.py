"""Puts a fleet together from its config: as many engines as a single run has one of."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from harness.cluster import discovery
from harness.cluster.config import ROUTER_KEYS, ClusterConfig
from harness.cluster.fleet import Fleet, Replica
from harness.cluster.router import Replicas, Router
from harness.config import ConfigError, RunConfig
from harness.engine.arrivals import RequestSource
from harness.engine.clock import VirtualClock
from harness.engine.request import Workload
from harness.engine.simulated_executor import SimulatedExecutor
from harness.measure.record_files import RecordSink
from harness.runs.one_engine import Core, Memory, assemble, make_memory, make_recorder
from harness.runs.own_options import as_annotated
from harness.runs.step_cost import simulated_executor
from harness.runs.surroundings import Device

_ANY_POOL_TOKENS = 2**20
"""Of a pool whose size only a run knows, for a router that is only checked."""

_MOST_LOOKED_AT = 32
"""Replicas that a display looks at: going through hundreds would take time of the run."""


@dataclass(frozen=True, slots=True)
class PreparedFleet:
    """Ready to go: `run`, then read what is asked for; `close` in any case. By replica: cores,
    memories, executors."""

    fleet: Fleet
    cores: Sequence[Core]
    memories: Sequence[Memory]
    executors: Sequence[SimulatedExecutor]

    @property
    def num_layer_groups(self) -> int:
        return len(self.memories[0].groups)

    @property
    def extrapolated_share(self) -> float:
        """Of the steps of all replicas."""
        beyond = sum(
            core.recorder.num_steps * executor.extrapolated_share
            for core, executor in zip(self.cores, self.executors, strict=True)
        )
        return beyond / max(1, sum(core.recorder.num_steps for core in self.cores))

    def run(self) -> None:
        """Serve the workload to its end, and close the books. Nothing that a fleet leaves behind on
        its way needs the garbage collector (`SequenceGroup.let_go`), which would look through the
        requests and caches of all replicas again and again: half of the run's time."""
        with _no_garbage_collection():
            self.fleet.run()
        for core in self.cores:
            core.recorder.close()

    def close(self) -> None:
        """Give everything back."""
        for executor in self.executors:
            executor.close()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def prepare_fleet(
    config: RunConfig,
    workload: Workload,
    num_pages: int,
    device: Device,
    sink: RecordSink,
) -> PreparedFleet:
    """`cluster.replicas` fresh engines behind a fresh router, for one repetition, whose seed is the
    config's and whose records go to `sink` as they come. num_pages: of all layers, for each
    replica. Each has an allocator, a pool, a ledger and a cost model of its own, as
    `harness.runs.build.prepare` makes them."""
    deferred = any(outline.true_output_len is None for outline in workload.outlines())
    cores, memories, executors = [], [], []
    for replica in range(config.cluster.replicas):
        memory = make_memory(config, num_pages, device.shape)
        recorder = make_recorder(config, memory, sink, deferred=deferred, replica=replica)
        executor = simulated_executor(config, device.shape, memory.groups, replica)
        cores.append(assemble(config, device, memory, recorder, VirtualClock(), executor))
        memories.append(memory)
        executors.append(executor)
    fleet = Fleet(
        [Replica(core.engine, core.scheduler) for core in cores],
        RequestSource(workload),
        lambda replicas: build_router(config.cluster, replicas),
        config.kv.page_size,
        num_pages * config.kv.page_size,
    )
    return PreparedFleet(fleet, cores, memories, executors)


def check_router(config: RunConfig) -> None:
    """Raise ConfigError for a router that there is not, or an option that it does not take."""
    pool_tokens = config.kv.pool_tokens or _ANY_POOL_TOKENS
    count, size = config.cluster.replicas, config.kv.page_size
    build_router(config.cluster, Replicas(count, size, pool_tokens, lambda _: 0, lambda _: 0))


def build_router(config: ClusterConfig, replicas: Replicas) -> Router:
    """The router that `config.router` names, with its options. ConfigError for a wrong one."""
    try:
        cls = discovery.load(config.router)
        known = discovery.options(cls)
        keys = {key: getattr(config, key) for key in ROUTER_KEYS if key in known}
        options = as_annotated(cls, known, config.options, "cluster.options")
        return discovery.build(cls, replicas, {**keys, **options})
    except ConfigError:
        raise
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"cluster.router={config.router}: {error}") from error


class WatchedFleet:
    """A prepared fleet as a display sees it while it goes on (`harness.runs.live`)."""

    def __init__(self, run: PreparedFleet, num_pages: int, page_size: int) -> None:
        self._recorders = [core.recorder for core in run.cores]
        stride = -(-len(run.cores) // _MOST_LOOKED_AT)
        self._schedulers = [core.scheduler for core in run.cores[::stride]]
        self._allocators = [memory.allocator for memory in run.memories[::stride]]
        self._scale = len(run.cores) / len(self._schedulers)
        self._groups = run.num_layer_groups
        self._page_size = page_size
        self._num_slots = num_pages * page_size * self._groups

    def num_ended(self) -> int:
        return sum(recorder.num_ended for recorder in self._recorders)

    def num_output_tokens(self) -> int:
        """Of requests under way, estimated from some replicas."""
        under_way = sum(
            sequence.num_output_tokens
            for scheduler in self._schedulers
            for group in scheduler.running
            for sequence in group.sequences
        )
        done = sum(recorder.num_output_tokens for recorder in self._recorders)
        return done + round(self._scale * under_way)

    def used_share(self) -> float:
        """The mean of some replicas."""
        shares = []
        for scheduler, allocator in zip(self._schedulers, self._allocators, strict=True):
            tokens = self._groups * sum(group.num_computed_tokens for group in scheduler.running)
            mapped = allocator.usage().mapped * self._page_size
            shares.append(min(tokens, mapped) / self._num_slots)
        return sum(shares) / len(shares)

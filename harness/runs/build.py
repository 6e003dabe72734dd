"""Puts a run together from its config: allocator, scheduler, executor, clock, recorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from allocators.base import KVCacheAllocator
from harness.config import RunConfig
from harness.engine.arrivals import ArrivalSource
from harness.engine.cost.work_log import WorkLog
from harness.engine.device.model_shape import LayerGroup, ModelShape
from harness.engine.engine import Engine
from harness.engine.executor import Executor
from harness.engine.outcome_log import OutcomeLog
from harness.engine.request import Workload
from harness.engine.scheduling.scheduler import Scheduler
from harness.measure.decisions import Decisions
from harness.measure.interference import Interference, interference, read_cpu
from harness.measure.memory_map import MemoryMap
from harness.measure.record_files import RecordSink
from harness.measure.recorder import RunRecorder
from harness.runs.one_engine import assemble, make_memory, make_recorder
from harness.runs.pool_size import BesidePool, estimated_beside_pool
from harness.runs.step_cost import simulated_executor
from harness.runs.surroundings import Device, real_surroundings, replayed_surroundings


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Ready to go: `run`, then read what is asked for. outcome_log, decisions: of a run with
    measure.outcome_log, or of a replay. is_timed: its clock is the wall's. own_cores: of the
    device."""

    engine: Engine
    scheduler: Scheduler
    arrivals: ArrivalSource
    executor: Executor
    recorder: RunRecorder
    memory_map: MemoryMap | None
    allocator: KVCacheAllocator
    num_layer_groups: int
    work_log: WorkLog | None = None
    outcome_log: OutcomeLog | None = None
    decisions: Decisions | None = None
    is_timed: bool = False
    own_cores: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self) -> Interference:
        """Serve the workload to its end, and close the books. What others had of the processor
        meanwhile, where it is timed."""
        before = read_cpu() if self.is_timed else None
        with self.own_cores():
            self.engine.run(self.arrivals)
        after = read_cpu() if self.is_timed else None
        self.recorder.close()
        return interference(before, after)


class WatchedRun:
    """A prepared run as a display sees it while it goes on (`harness.runs.live`)."""

    def __init__(self, run: PreparedRun, num_pages: int, page_size: int) -> None:
        self._run = run
        self._page_size = page_size
        self._num_slots = num_pages * page_size * run.num_layer_groups

    def num_ended(self) -> int:
        return self._run.recorder.num_ended

    def num_output_tokens(self) -> int:
        running = self._run.scheduler.running
        under_way = sum(s.num_output_tokens for group in running for s in group.sequences)
        return self._run.recorder.num_output_tokens + under_way

    def used_share(self) -> float:
        """Tokens that branches share count for each, though never above what is mapped."""
        groups = self._run.num_layer_groups
        tokens = groups * sum(group.num_computed_tokens for group in self._run.scheduler.running)
        mapped = self._run.allocator.usage().mapped * self._page_size
        return min(tokens, mapped) / self._num_slots


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """No device at all: a shape, and memory that is imagined."""

    shape: ModelShape
    memory_bytes: int | None
    tokenizer: Any | None = None
    eos_ids: frozenset[int] = frozenset()
    memory: None = None

    def own_cores(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_clean(self) -> bool:
        return True

    def close(self) -> None:
        return None

    def abandon(self) -> None:
        return None

    def beside_pool(self, config: RunConfig, longest_len: int) -> BesidePool:
        return estimated_beside_pool(config, self.shape)

    def executor(
        self, config: RunConfig, num_pages: int, max_len: int, groups: Sequence[LayerGroup] = ()
    ) -> Executor:
        return simulated_executor(config, self.shape, groups)


def prepare(
    config: RunConfig,
    workload: Workload,
    num_pages: int,
    device: Device,
    sink: RecordSink,
    replayed: OutcomeLog | None = None,
) -> PreparedRun:
    """Fresh allocator, scheduler, ledger, clock and executor for one repetition, whose seed is the
    config's and whose records go to `sink`. num_pages: of all layers; where groups of layers have
    pages of their own, the pool has so many for each. replayed: what stands in for clock and
    device."""
    memory = make_memory(config, num_pages, device.shape)
    decisions = None
    if config.measure.outcome_log or replayed is not None:
        decisions = Decisions()
        draft = memory.draft_strategy
        for each in memory.strategies if draft is None else (*memory.strategies, draft):
            decisions.watch(each)
    if decisions is not None and replayed is not None:
        around = replayed_surroundings(workload, replayed, decisions)
    else:
        around = real_surroundings(
            config, workload, device, memory.pool.num_pages, memory.groups, decisions
        )
    memory_map = (
        MemoryMap(config.measure.memory_map_period_s) if config.measure.memory_map else None
    )
    is_simulated = config.executor.kind == "simulated"
    is_timed = not is_simulated and replayed is None
    recorder = make_recorder(
        config,
        memory,
        sink,
        # a timed run keeps the ledger's work out of the time between its steps
        deferred=not is_simulated or any(o.true_output_len is None for o in workload.outlines()),
        memory_map=memory_map,
    )
    core = assemble(config, device, memory, recorder, around.clock, around.executor)
    return PreparedRun(
        core.engine,
        core.scheduler,
        around.arrivals,
        around.device,
        recorder,
        memory_map,
        memory.allocator,
        len(memory.groups),
        around.work_log,
        around.outcome_log,
        decisions,
        is_timed=is_timed,
        own_cores=device.own_cores if is_timed else nullcontext,
    )

"""Puts a run together from its config: allocator, scheduler, executor, clock, recorder."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allocators import discovery
from allocators.base import KVCacheAllocator
from allocators.layer_groups import LayerGroups, can_share_pool
from allocators.page_pool import PagePool
from harness.config import ConfigError, RunConfig, convert
from harness.engine.arrivals import ArrivalSource
from harness.engine.cost.work_log import WorkLog
from harness.engine.device.model_shape import LayerGroup, ModelShape
from harness.engine.engine import Engine, Limits
from harness.engine.executor import Executor
from harness.engine.outcome_log import OutcomeLog
from harness.engine.request import Workload
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from harness.engine.simulated_executor import SimulatedExecutor
from harness.measure.decisions import Decisions
from harness.measure.ledger import Ledger
from harness.measure.memory_map import MemoryMap
from harness.measure.metered_allocator import MeteredAllocator
from harness.measure.record_files import RecordSink
from harness.measure.recorder import RunRecorder
from harness.runs.pool_size import BesidePool, estimated_beside_pool, host_pages
from harness.runs.step_cost import cost_model
from harness.runs.surroundings import Device, real_surroundings, replayed_surroundings


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Ready to go: `run`, then read what is asked for. outcome_log, decisions: of a run with
    measure.outcome_log, or of a replay."""

    engine: Engine
    scheduler: Scheduler
    arrivals: ArrivalSource
    executor: Executor
    recorder: RunRecorder
    memory_map: MemoryMap | None
    allocator: MeteredAllocator
    num_layer_groups: int
    work_log: WorkLog | None = None
    outcome_log: OutcomeLog | None = None
    decisions: Decisions | None = None

    def run(self) -> None:
        """Serve the workload to its end, and close the books."""
        self.engine.run(self.arrivals)
        self.recorder.close()


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

    def is_clean(self) -> bool:
        return True

    def beside_pool(self, config: RunConfig, longest_len: int) -> BesidePool:
        return estimated_beside_pool(config, self.shape)

    def executor(
        self, config: RunConfig, num_pages: int, max_len: int, groups: Sequence[LayerGroup] = ()
    ) -> Executor:
        return SimulatedExecutor(
            cost_model(config, self.shape, groups),
            self.shape.vocab_size,
            config.engine.speculation.acceptance,
        )


def prepare(
    config: RunConfig,
    workload: Workload,
    num_pages: int,
    device: Device,
    seed: int,
    sink: RecordSink,
    replayed: OutcomeLog | None = None,
) -> PreparedRun:
    """Fresh allocator, scheduler, ledger, clock and executor for one repetition, whose records
    go to `sink`. num_pages: of all layers; where groups of layers have pages of their own, the
    pool has so many for each. replayed: what stands in for clock and device."""
    page_size, pool_tokens = config.kv.page_size, num_pages * config.kv.page_size
    groups = layer_groups(config, device.shape)
    windows = tuple(group.window for group in groups)
    pool = PagePool(num_pages * len(groups), page_size)
    strategies = [build_allocator(config, pool) for _ in groups]
    allocator = MeteredAllocator(strategies[0] if len(groups) == 1 else LayerGroups(strategies))
    draft_allocator = None
    if config.engine.speculation.draft is not None:
        draft_allocator = build_allocator(config, PagePool(num_pages, page_size))
    decisions = None
    if config.measure.outcome_log or replayed is not None:
        decisions = Decisions()
        for each in strategies if draft_allocator is None else (*strategies, draft_allocator):
            decisions.watch(each)
    scheduler = Scheduler(
        allocator,
        _scheduler_config(config, device, pool.num_pages, groups),
        LengthEstimator(
            config.allocator.expected,
            config.allocator.expected_bias,
            config.allocator.expected_spread,
            seed,
        ),
        draft_allocator,
    )
    if decisions is not None and replayed is not None:
        around = replayed_surroundings(workload, replayed, decisions)
    else:
        around = real_surroundings(config, workload, device, pool.num_pages, groups, decisions)
    memory_map = (
        MemoryMap(config.measure.memory_map_period_s) if config.measure.memory_map else None
    )
    is_simulated = config.executor.kind == "simulated"
    recorder = RunRecorder(
        Ledger(pool.num_pages, page_size, windows),
        allocator,
        sink,
        # a timed run keeps the ledger's work out of the time between its steps
        deferred=not is_simulated or any(o.true_output_len is None for o in workload.outlines()),
        keeps_tokens=not is_simulated,
        memory_map=memory_map,
        draft_ledger=None if draft_allocator is None else Ledger(num_pages, page_size),
    )
    limits = Limits(
        pool_tokens,
        page_size,
        device.shape.max_positions,
        config.engine.max_num_seqs,
        config.engine.token_budget,
    )
    return PreparedRun(
        Engine(
            scheduler,
            around.executor,
            around.clock,
            recorder,
            limits,
            allocator,
            overlap=config.engine.overlap,
        ),
        scheduler,
        around.arrivals,
        around.device,
        recorder,
        memory_map,
        allocator,
        len(groups),
        around.work_log,
        around.outcome_log,
        decisions,
    )


def _scheduler_config(
    config: RunConfig, device: Device, num_pages: int, groups: Sequence[LayerGroup]
) -> SchedulerConfig:
    engine = config.engine
    return SchedulerConfig(
        engine.schedule,
        engine.token_budget,
        engine.max_num_seqs,
        engine.watermark,
        engine.preemption,
        host_pages(config, num_pages, len(groups)),
        engine.victim,
        engine.batch_size,
        engine.batch_order,
        tuple(group.window for group in groups),
        engine.speculation,
        device.shape.vocab_size,
    )


def layer_groups(config: RunConfig, shape: ModelShape) -> tuple[LayerGroup, ...]:
    """The groups of layers that have pages of their own: one where the strategy needs the whole
    pool, which then keeps KV as long as any layer reads it."""
    groups = shape.layer_groups
    merged = LayerGroup.merged(groups)
    if config.attention.kind != "paged":
        return (LayerGroup(None, merged.layers),)
    return groups if can_share_pool(discovery.load(config.allocator.name)) else (merged,)


def build_allocator(config: RunConfig, pool: PagePool) -> KVCacheAllocator:
    """The strategy that `config.allocator` names, with its options. ConfigError for a wrong one."""
    given = config.allocator
    try:
        cls = discovery.load(given.name)
        known = discovery.options(cls)
        hints = typing.get_type_hints(cls.__init__)
        options = {
            key: convert(hints[key], value, f"allocator.{key}")
            if key in hints and key in known and value != known[key].default
            else value
            for key, value in given.options.items()
        }
        return discovery.build(cls, pool, **options)
    except ConfigError:
        raise
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"allocator={given.name}: {error}") from error

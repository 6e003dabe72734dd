"""One engine from its config: pool, strategies, scheduler, ledger; clock and executor are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from allocators import discovery
from allocators.base import KVCacheAllocator
from allocators.page_pool import PagePool
from harness.config import ConfigError, RunConfig
from harness.engine.checked_allocator import checked
from harness.engine.clock import Clock
from harness.engine.device.model_shape import LayerGroup, ModelShape
from harness.engine.engine import Engine, Limits
from harness.engine.executor import Executor
from harness.engine.page_book import PageBook
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from harness.measure.ledger import Ledger
from harness.measure.memory_map import MemoryMap
from harness.measure.record_files import RecordSink
from harness.measure.recorder import RunRecorder
from harness.runs.own_options import as_annotated
from harness.runs.pool_size import host_pages
from harness.runs.surroundings import Device


class Memory(NamedTuple):
    """Fresh memory of one engine. num_pages: of all layers; where groups of layers have pages of
    their own, the pool has so many for each. strategies: one for each group; allocator: all of
    them, checked, with what is known of the pool's pages."""

    num_pages: int
    pool: PagePool
    groups: tuple[LayerGroup, ...]
    strategies: Sequence[KVCacheAllocator]
    allocator: KVCacheAllocator
    page_book: PageBook
    draft_strategy: KVCacheAllocator | None
    draft_allocator: KVCacheAllocator | None


class Core(NamedTuple):
    """One engine, and what is read of it."""

    engine: Engine
    scheduler: Scheduler
    recorder: RunRecorder


def make_memory(config: RunConfig, num_pages: int, shape: ModelShape) -> Memory:
    """A pool, and the strategies over it."""
    page_size = config.kv.page_size
    groups = layer_groups(config, shape)
    pool = PagePool(num_pages * len(groups), page_size)
    strategies = [build_allocator(config, pool) for _ in groups]
    book = PageBook(pool.num_pages, page_size)
    draft = draft_allocator = None
    if config.engine.speculation.draft is not None:
        draft = build_allocator(config, PagePool(num_pages, page_size))
        draft_allocator = checked([draft], PageBook(num_pages, page_size))
    allocator = checked(strategies, book)
    return Memory(num_pages, pool, groups, strategies, allocator, book, draft, draft_allocator)


def make_recorder(
    config: RunConfig,
    memory: Memory,
    sink: RecordSink,
    *,
    deferred: bool,
    memory_map: MemoryMap | None = None,
    replica: int = 0,
) -> RunRecorder:
    """Ledger and records of one engine."""
    page_size = config.kv.page_size
    windows = tuple(group.window for group in memory.groups)
    has_draft = memory.draft_allocator is not None
    return RunRecorder(
        Ledger(memory.pool.num_pages, page_size, windows),
        memory.page_book,
        sink,
        deferred=deferred,
        keeps_tokens=config.executor.kind != "simulated",
        memory_map=memory_map,
        draft_ledger=Ledger(memory.num_pages, page_size) if has_draft else None,
        replica=replica,
    )


def assemble(
    config: RunConfig,
    device: Device,
    memory: Memory,
    recorder: RunRecorder,
    clock: Clock,
    executor: Executor,
) -> Core:
    """An engine over `memory`."""
    scheduler = Scheduler(
        memory.allocator,
        _scheduler_config(config, device, memory.pool.num_pages, memory.groups),
        LengthEstimator(
            config.allocator.expected,
            config.allocator.expected_bias,
            config.allocator.expected_spread,
            config.seed,
        ),
        memory.draft_allocator,
    )
    limits = Limits(
        memory.num_pages * config.kv.page_size,
        config.kv.page_size,
        device.shape.max_positions,
        config.engine.max_num_seqs,
        config.engine.token_budget,
    )
    engine = Engine(
        scheduler,
        executor,
        clock,
        recorder,
        limits,
        memory.allocator,
        overlap=config.engine.overlap,
    )
    return Core(engine, scheduler, recorder)


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
    return groups if discovery.load(config.allocator.name).shares_pool else (merged,)


def build_allocator(config: RunConfig, pool: PagePool) -> KVCacheAllocator:
    """The strategy that `config.allocator` names, with its options. ConfigError for a wrong one."""
    given = config.allocator
    try:
        cls = discovery.load(given.name)
        known = discovery.options(cls)
        options = as_annotated(cls, known, given.options, "allocator")
        return discovery.build(cls, pool, **options)
    except ConfigError:
        raise
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"allocator={given.name}: {error}") from error

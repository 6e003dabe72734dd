"""The memory of GPUs that are simulated, and what cannot fit in it."""

from __future__ import annotations

from harness.config import ConfigError, RunConfig
from harness.engine.cost.gpu import GPUS
from harness.engine.device.model_shape import ModelShape


def simulated_memory_bytes(config: RunConfig) -> int | None:
    """Memory of a device that is not there: what the user imagines, else that of the GPUs whose
    figures the steps' times are from, all together; None where neither is given."""
    if config.device.imagined_memory_gib is not None:
        return int(config.device.imagined_memory_gib * 2**30)
    if config.executor.cost != "roofline":
        return None
    return int(GPUS[config.executor.gpu].memory_bytes) * config.engine.tensor_parallel


def check_fits(config: RunConfig, shape: ModelShape) -> None:
    """Raise ConfigError for a model that cannot be split over so many simulated GPUs, or whose
    weights alone are more than their memory, however the pool is sized."""
    memory = simulated_memory_bytes(config)
    if config.executor.cost != "roofline" or memory is None:
        return
    name, count = config.model.name, config.engine.tensor_parallel
    heads, kv_heads = shape.num_q_heads, shape.num_kv_heads
    if not _splits(heads, kv_heads, count):
        possible = [n for n in range(1, heads + 1) if _splits(heads, kv_heads, n)]
        raise ConfigError(
            f"engine.tensor_parallel={count} does not split the {heads} heads ({kv_heads} of keys "
            f"and values) of model={name} evenly: choose one of {', '.join(map(str, possible))}"
        )
    if shape.weight_bytes >= memory:
        raise ConfigError(
            f"model={name} needs {shape.weight_bytes / 2**30:.1f} GiB for its weights alone, "
            f"{_place(config)} has {memory / 2**30:.1f} GiB: {_way_out(config, shape, memory)}"
        )


def _place(config: RunConfig) -> str:
    if config.device.imagined_memory_gib is not None:
        return f"device.imagined_memory_gib={config.device.imagined_memory_gib:g}"
    count = config.engine.tensor_parallel
    return f"executor.gpu={config.executor.gpu}" + (f" x {count}" if count > 1 else "")


def _way_out(config: RunConfig, shape: ModelShape, memory: int) -> str:
    if config.device.imagined_memory_gib is not None:
        return "raise it"
    count = config.engine.tensor_parallel
    larger = [n for n, gpu in GPUS.items() if gpu.memory_bytes * count > shape.weight_bytes]
    enough = (
        n
        for n in range(count, shape.num_q_heads + 1)
        if n * memory > count * shape.weight_bytes
        and _splits(shape.num_q_heads, shape.num_kv_heads, n)
    )
    ways = [f"executor.gpu={' or '.join(larger)}"] if larger else []
    ways += [f"engine.tensor_parallel={n}" for n in list(enough)[:1]]
    return f"use {', or '.join(ways)}" if ways else "choose a smaller model"


def _splits(heads: int, kv_heads: int, count: int) -> bool:
    """Every GPU has as many heads, and whole KV heads: its part of them, or a copy of one."""
    return heads % count == 0 and max(count, kv_heads) % min(count, kv_heads) == 0

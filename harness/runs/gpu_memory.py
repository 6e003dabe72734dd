"""The memory of GPUs that are simulated, and what cannot fit in it."""

from __future__ import annotations

from harness.config import ConfigError, RunConfig
from harness.engine.cost.gpu import GPUS
from harness.engine.device.model_shape import ModelShape


def simulated_memory_bytes(config: RunConfig) -> int | None:
    """Memory of devices that are not there, all together: of each what the user imagines, else
    that of the GPU whose figures the steps' times are from; None where neither is given."""
    count = config.engine.tensor_parallel
    if config.device.imagined_memory_gib is not None:
        return int(config.device.imagined_memory_gib * 2**30) * count
    if config.executor.cost != "roofline":
        return None
    return int(GPUS[config.executor.gpu].memory_bytes) * count


def check_fits(config: RunConfig, shape: ModelShape) -> None:
    """Raise ConfigError for a model whose weights alone are more than the memory of its simulated
    GPUs, however the pool is sized."""
    memory = simulated_memory_bytes(config)
    if config.executor.cost != "roofline" or memory is None:
        return
    name = config.model.name
    if shape.weight_bytes >= memory:
        raise ConfigError(
            f"model={name} needs {shape.weight_bytes / 2**30:.1f} GiB for its weights alone, "
            f"{_place(config)} has {memory / 2**30:.1f} GiB: {_way_out(config, shape, memory)}"
        )


def check_split(config: RunConfig, shape: ModelShape) -> None:
    """Raise ConfigError for a model that cannot be split over engine.tensor_parallel ranks."""
    try:
        shape.of_rank(config.engine.tensor_parallel)
    except ValueError as error:
        raise ConfigError(f"model={config.model.name}: {error}") from error


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
        if n * memory > count * shape.weight_bytes and shape.splits_over(n)
    )
    ways = [f"executor.gpu={' or '.join(larger)}"] if larger else []
    ways += [f"engine.tensor_parallel={n}" for n in list(enough)[:1]]
    return f"use {', or '.join(ways)}" if ways else "choose a smaller model"

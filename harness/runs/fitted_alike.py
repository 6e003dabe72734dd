"""What a workload derives from a run's pool and model is derived once for the runs of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.config import RunConfig
from harness.engine.device.model_shape import ModelConfig, ModelShape
from harness.runs.pool_size import longest_request_len


def fitted_alike(
    parts: Sequence[str],
    configs: Sequence[RunConfig],
    shape_of: Callable[[ModelConfig], ModelShape],
) -> list[RunConfig]:
    """`configs` with workload.fit_len where it was left open: the smallest that any run of the same
    part, workload and executor asks for, so that they serve the same requests whatever pools and
    models they are compared over. parts: of each config."""
    smallest: dict[tuple[str, str, str], int] = {}
    keys = [
        (part, config.workload.name, config.executor.kind)
        for part, config in zip(parts, configs, strict=True)
    ]
    for key, config in zip(keys, configs, strict=True):
        if _is_open(config):
            own = longest_request_len(config, shape_of(config.model))
            smallest[key] = min(own, smallest.get(key, own))
    return [
        replace(config, workload=replace(config.workload, fit_len=smallest[key]))
        if _is_open(config)
        else config
        for key, config in zip(keys, configs, strict=True)
    ]


def _is_open(config: RunConfig) -> bool:
    return config.workload.generator != "synthetic" and config.workload.fit_len is None

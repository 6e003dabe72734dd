"""The executor of simulated runs, with the cost model that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.config import ConfigError, RunConfig
from harness.conversion import to_mapping
from harness.engine.cost.calibrated import CalibratedCost, Calibration
from harness.engine.cost.gpu import GPUS
from harness.engine.cost.model import ConstantCost, CostModel, WorkCost
from harness.engine.cost.roofline import Efficiency, Overheads, Roofline
from harness.engine.cost.step_work import WorkCounter
from harness.engine.device.model_shape import LayerGroup, ModelShape, model_shape
from harness.engine.simulated_executor import SimulatedExecutor
from harness.runs.pool_size import draft_model, kv_bytes_per_token


def simulated_executor(
    config: RunConfig, shape: ModelShape, groups: Sequence[LayerGroup], replica: int = 0
) -> SimulatedExecutor:
    """A fresh one, which draws as the config's seed says. groups: the layers that have pages of
    their own. replica: of a fleet, which of them it is for: their noise is independent, that of the
    first as without a fleet."""
    return SimulatedExecutor(
        _cost_model(config, shape, groups, replica),
        shape.vocab_size,
        config.engine.speculation.acceptance,
        config.seed,
        replica,
    )


def _cost_model(
    config: RunConfig, shape: ModelShape, groups: Sequence[LayerGroup], replica: int
) -> CostModel:
    """What a step of `config` takes."""
    if config.executor.cost == "constant":
        return ConstantCost(config.executor.step_ms / 1e3)
    counter = work_counter(config, groups)
    if config.executor.cost == "calibrated":
        return CalibratedCost(
            load_calibration(config), counter, config.kv.page_size, config.seed, replica
        )
    draft = draft_shape(config)
    return WorkCost(
        counter,
        _roofline(config, shape, groups).work_s,
        None if draft is None else _roofline(config, draft, _all_layers(draft)).work_s,
    )


def load_calibration(config: RunConfig) -> Calibration:
    """The file of executor.calibration. Raises ConfigError for one that cannot be read, or that
    was fitted to another model."""
    path = config.executor.calibration
    assert path is not None
    key = f"executor.calibration={path}"
    try:
        calibration = Calibration.load(Path(path).expanduser())
    except ValueError as error:
        raise ConfigError(f"{key} {error}: `python -m experiments calibrate` writes one") from error
    model = to_mapping(config.model)
    if calibration.model != model or calibration.kv_dtype != config.kv.dtype:
        differing = [k for k, v in model.items() if calibration.model.get(k) != v] or ["kv.dtype"]
        raise ConfigError(
            f"{key} was fitted to model={calibration.model.get('name')} and kv.dtype="
            f"{calibration.kv_dtype}, not to model={config.model.name} and kv.dtype="
            f"{config.kv.dtype} (they differ in {', '.join(differing)}): calibrate that one with "
            f"`python -m experiments calibrate model={config.model.name}`"
        )
    return calibration


def work_counter(config: RunConfig, groups: Sequence[LayerGroup]) -> WorkCounter:
    """Counts the work of the steps of a run of `config`."""
    draft = draft_shape(config)
    size = config.kv.page_size
    at_random = config.workload.temperature > 0
    draft_counter = None
    if draft is not None:
        draft_counter = WorkCounter(size, _all_layers(draft), draws_at_random=at_random)
    return WorkCounter(size, groups, draft_counter, draws_at_random=at_random)


def draft_shape(config: RunConfig) -> ModelShape | None:
    """The shape of the draft model, if there is one."""
    draft = draft_model(config)
    return None if draft is None else model_shape(draft)


def _all_layers(shape: ModelShape) -> tuple[LayerGroup]:
    """A draft model's layers share their tables."""
    return (LayerGroup.merged(shape.layer_groups),)


def _roofline(config: RunConfig, shape: ModelShape, groups: Sequence[LayerGroup]) -> Roofline:
    executor = config.executor
    token_bytes = kv_bytes_per_token(config, shape)
    layers = len(groups[0].layers)
    return Roofline(
        GPUS[executor.gpu],
        shape,
        page_bytes=config.kv.page_size * token_bytes * layers / len(shape.kv_layers),
        token_bytes=token_bytes,
        page_transfers=2 * layers,
        num_gpus=config.engine.tensor_parallel,
        efficiency=Efficiency(
            executor.gemm_efficiency, executor.attention_efficiency, executor.bandwidth_efficiency
        ),
        overheads=Overheads(
            executor.host_us / 1e6,
            executor.host_us_per_sequence / 1e6,
            executor.transfer_us / 1e6,
            executor.allreduce_us / 1e6,
        ),
    )

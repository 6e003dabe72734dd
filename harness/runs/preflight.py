"""What is known to be wrong before a run starts: it ends a command at once, in one line.

What only this machine or this cell cannot do (a pool too small, out of memory) is no mistake of
the command: such a run fails alone and becomes a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from allocators.page_pool import PagePool
from harness.config import ConfigError, RunConfig
from harness.conversion import unknown_name
from harness.engine.device.model_shape import (
    ModelConfig,
    ModelShape,
    model_presets,
    model_shape,
)
from harness.engine.device.parallel.launched import Launch
from harness.own_code import blame, is_file
from harness.runs.apart import apart
from harness.runs.fleet import check_router
from harness.runs.gpu_memory import check_fits, check_split, simulated_memory_bytes
from harness.runs.one_engine import build_allocator
from harness.runs.pool_size import (
    draft_model,
    is_what_memory_leaves,
    longest_request_len,
    needs_device_memory,
)
from harness.runs.step_cost import load_calibration
from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Preflight:
    """Checks configs; models, workloads and kernels each once, however many configs share them.
    device_is_here: whether timed runs are done on this machine; what another has is not checked."""

    def __init__(self, *, device_is_here: bool = True) -> None:
        self._device_is_here = device_is_here
        self._shapes: dict[str, ModelShape] = {}
        self._replayed: set[tuple[str, int, int]] = set()
        self._checked_kernels: set[tuple[object, ...]] = set()
        self._checked_code: set[str] = set()

    def check_own_code(self, configs: Sequence[RunConfig]) -> None:
        """Raise ConfigError for an allocator or a router of one's own that cannot be made, or a
        wrong option of it. Tried apart, all in one process: this one executes none of it."""
        own = {
            repr((config.allocator, config.kv.page_size, config.cluster)): config
            for config in configs
            if is_file(config.allocator.name) or is_file(config.cluster.router)
        }
        new = [config for key, config in own.items() if key not in self._checked_code]
        if new:
            specs = {spec for c in new for spec in (c.allocator.name, c.cluster.router)}
            apart(", ".join(sorted(filter(is_file, specs))), _check_code, new)
        self._checked_code.update(own)

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError for an option, model, trace, page size or memory that cannot do."""
        self.check_own_code([config])
        if not (is_file(config.allocator.name) or is_file(config.cluster.router)):
            _check_code([config])
        shape = self.shape(config.model)
        is_simulated = config.executor.kind == "simulated"
        is_elsewhere = not (is_simulated or self._device_is_here)
        if needs_device_memory(config) and not (is_elsewhere or _has_memory(config)):
            raise ConfigError(
                f"kv.memory_fraction={config.kv.memory_fraction} needs a device memory: on a CPU "
                "and in simulation give device.imagined_memory_gib (or executor.cost=roofline "
                "and executor.gpu), or size the pool by kv.pool_tokens or kv.pool_demand"
            )
        _check_kept(config, shape, f"model={config.model.name}")
        check_split(config, shape)
        if not is_simulated:
            _check_launch(config)
        check_fits(config, shape)
        if config.executor.cost == "calibrated":
            load_calibration(config)
        if not (is_simulated or is_elsewhere):
            self._check_kernels(config, shape)
        self._check_draft(config, shape)
        self._check_trace(config, shape)

    def _check_draft(self, config: RunConfig, shape: ModelShape) -> None:
        name = config.engine.speculation.draft
        if name is None:
            return
        key = f"engine.speculation.draft={name}"
        presets = set(model_presets()) - {"hub"}  # it needs a path, which is itself the value here
        if name not in presets and "/" not in name and not Path(name).exists():
            # asking the hub for what is most likely a typo takes many seconds
            hint = unknown_name(name, presets, "model")
            raise ConfigError(f"{key}: {hint}. A checkpoint is given as ./DIR or OWNER/NAME")
        draft = draft_model(config)
        assert draft is not None
        own = self.shape(draft, key)
        if own.state_bytes:
            raise ConfigError(
                f"{key} keeps {own.state_bytes} bytes of state a sequence beside its KV, which are "
                "not counted for a draft model: choose one with attention alone"
            )
        _check_kept(config, own, key)
        if own.vocab_size != shape.vocab_size:
            raise ConfigError(
                f"{key} has a vocabulary of {own.vocab_size}, model={config.model.name} one of "
                f"{shape.vocab_size}: a draft model must have the model's own"
            )

    def shape(self, model: ModelConfig, what: str = "") -> ModelShape:
        """That of `model`; ConfigError where it cannot be used. what: the key and value that chose
        it, where these are not model=NAME."""
        key = repr(model)
        if key not in self._shapes:
            own = f"model.path={model.path}" if model.path else f"model={model.name}"
            if model.path and not (_HUB_ID.fullmatch(model.path) or Path(model.path).exists()):
                raise ConfigError(
                    f"{what or own} cannot be used: no such folder, and no hub id: give a "
                    "checkpoint's DIR, or OWNER/NAME"
                )
            try:
                self._shapes[key] = model_shape(model)
            except Exception as error:  # transformers, hub and file errors are of many kinds
                text = " ".join(str(error).split())
                if isinstance(error, KeyError | TypeError):
                    text = (
                        f"model.config describes no {model.family}: {type(error).__name__} {text}"
                    )
                raise ConfigError(f"{what or own} cannot be used: {text}") from error
        return self._shapes[key]

    def _check_kernels(self, config: RunConfig, shape: ModelShape) -> None:
        kv, attention = config.kv, config.attention
        model = (repr(config.model), config.engine.tensor_parallel)
        key = (config.device, attention.backend, kv.page_size, kv.dtype, *model)
        if key in self._checked_kernels:
            return
        import torch

        from harness.runs.torch_device import kv_dtype_name, resolve_device
        from kernels.backend import load

        of_rank = shape.of_rank(config.engine.tensor_parallel)
        try:
            load(resolve_device(config.device), attention.backend).check(
                page_size=kv.page_size,
                num_q_heads=of_rank.num_q_heads,
                num_kv_heads=of_rank.num_kv_heads,
                head_dim=shape.head_dim,
                dtype=getattr(torch, kv_dtype_name(config, shape)),
            )
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"attention.backend={attention.backend}: {error}") from error
        self._checked_kernels.add(key)

    def _check_trace(self, config: RunConfig, shape: ModelShape) -> None:
        """Make the requests, of a trace from all of its rows. A checkpoint's own tokenizer is left
        to the run."""
        workload = config.workload
        key = (repr(workload), shape.vocab_size, longest_request_len(config, shape))
        if config.model.path is not None or key in self._replayed:
            return
        own = [each for each in (workload.generator, workload.format) if each and is_file(each)]
        arguments = workload, config.seed, shape.vocab_size, longest_request_len(config, shape)
        if own:
            apart(", ".join(own), _check_workload, *arguments)
        else:
            _check_workload(*arguments)
        self._replayed.add(key)


def _check_kept(config: RunConfig, shape: ModelShape, what: str) -> None:
    """Raise ConfigError for a model that keeps something that the run would not count."""
    if config.executor.kind == "torch" and not shape.is_plain:
        raise ConfigError(f"{what} {shape.unlike_plain}: use executor=simulated")
    is_counted = is_what_memory_leaves(config, simulated_memory_bytes(config))
    if shape.state_bytes and not is_counted:
        raise ConfigError(
            f"{what} keeps {shape.state_bytes} bytes of state a sequence, which a pool given in "
            "tokens does not count: size it by kv.memory_fraction (of executor.gpu with "
            "executor.cost=roofline, or of device.imagined_memory_gib)"
        )


def _check_workload(workload: WorkloadConfig, seed: int, vocab_size: int, longest_len: int) -> None:
    try:
        generate(workload, seed=seed, vocab_size=vocab_size, longest_len=longest_len)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_code(configs: Sequence[RunConfig]) -> None:
    for config in configs:
        try:
            build_allocator(config, PagePool(1, config.kv.page_size))
            check_router(config)
        except ConfigError:
            raise
        except Exception as error:  # of one's own code
            spec = config.allocator.name
            raise ConfigError(f"allocator={spec}: {blame(error, spec)}") from error


def _check_launch(config: RunConfig) -> None:
    """Under torchrun, a split model takes all of its processes."""
    launch, count = Launch.of(), config.engine.tensor_parallel
    if launch is not None and count not in (1, launch.size):
        raise ConfigError(
            f"engine.tensor_parallel={count} under a torchrun of {launch.size} processes: both "
            "must be the same"
        )


def _has_memory(config: RunConfig) -> bool:
    """Whether the device's memory is known, or imagined."""
    if simulated_memory_bytes(config) is not None:
        return True
    if config.executor.kind == "simulated":
        return False
    from harness.runs.torch_device import resolve_device

    return resolve_device(config.device) == "cuda"

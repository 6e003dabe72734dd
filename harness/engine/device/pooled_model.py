"""A model on a KV pool of its own: what a rank needs to carry out steps that are lowered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from allocators.base import PageCopy
from harness.engine.device.compiled import CompiledModel
from harness.engine.device.kv_pool import HostKV, KVPool
from harness.engine.device.model_runner import ModelRunner
from harness.engine.device.model_shape import LayerGroup
from harness.engine.device.models import LoadedModel
from kernels import backend


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The arguments of `TorchExecutor` that every rank builds the same from."""

    num_pages: int
    page_size: int
    max_seqs: int
    max_len: int
    attention: str = "paged"
    kernels: str = "auto"
    kv_dtype: str = "auto"
    host_pages: int = 0
    fused: bool = True
    poison: bool = False
    groups: tuple[LayerGroup, ...] = ()


class PooledModel:
    """`loaded`, the kernels, and memory for its KV heads on the device and on the host.

    Raises ValueError where the kernels cannot run these shapes.
    """

    def __init__(
        self, loaded: LoadedModel, spec: PoolSpec, compiled: CompiledModel | None = None
    ) -> None:
        device = torch.device(loaded.model.device)
        own_dtype = loaded.model.dtype
        shape = loaded.rank_shape
        self.dtype = own_dtype if spec.kv_dtype == "auto" else getattr(torch, spec.kv_dtype)
        self.kernels: Any = backend.load(device.type, spec.kernels)
        self.kernels.check(
            page_size=spec.page_size,
            num_q_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=self.dtype,
        )
        self.pool = KVPool(
            shape,
            spec.num_pages,
            spec.page_size,
            dtype=self.dtype,
            device=device,
            poison=spec.poison,
            groups=spec.groups,
        )
        self.host_pool = HostKV(self.pool, spec.host_pages)
        self.runner = ModelRunner(
            loaded,
            self.pool,
            self.kernels,
            attention=spec.attention,
            fused=spec.fused,
            compiled=compiled,
        )

    def move_pages(
        self,
        saves: Sequence[PageCopy],
        copies: Sequence[PageCopy],
        restores: Sequence[PageCopy],
    ) -> None:
        """In the order in which a step plan means them: to the host, within the pool, back."""
        if saves:
            self.host_pool.save(self.pool, saves)
        self.pool.copy(copies, self.kernels)
        if restores:
            self.host_pool.restore(self.pool, restores)

    def reserve(self, max_tokens: int, max_samples: int) -> None:
        """Take the activations' buffers for steps of at most so many tokens and sampled rows."""
        if self.runner.lean is not None:
            self.runner.lean.reserve(max_tokens, max_samples)

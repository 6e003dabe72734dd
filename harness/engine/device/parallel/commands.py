"""What rank 0 tells the others beside steps. Rare, so they travel as Python objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.pooled_model import PoolSpec


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Take a slice of `config`. threads: torch's, of each rank."""

    config: ModelConfig
    device: Literal["cpu", "cuda"]
    threads: int


@dataclass(frozen=True, slots=True)
class BuildPool:
    """Put the model on a fresh pool."""

    spec: PoolSpec


@dataclass(frozen=True, slots=True)
class Reserve:
    """See `PooledModel.reserve`."""

    max_tokens: int
    max_samples: int


@dataclass(frozen=True, slots=True)
class ReleasePool:
    """Give the pool back; the model stays."""


Command = LoadModel | BuildPool | Reserve | ReleasePool

"""Settings that must stand before anything else is imported, and fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import harness  # noqa: F401  before torch, which reads what it sets

# isort: split
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, per process


@pytest.fixture
def poisoned() -> Callable[..., torch.Tensor]:
    """Makes tensors full of NaN: what is read without having been written shows up."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    return make

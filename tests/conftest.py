"""Settings that must stand before anything else is imported, and fixtures for all tests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

import harness  # noqa: F401  before torch, which reads what it sets

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores: threads would take turns
    num_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))

# one folder of locks a test process: else tests would wait for each other's timed runs
if "KVARENA_LOCKS" not in os.environ:
    os.environ["KVARENA_LOCKS"] = tempfile.mkdtemp(prefix="kvarena-locks-")
    atexit.register(shutil.rmtree, os.environ["KVARENA_LOCKS"], ignore_errors=True)

# isort: split
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, per process


def pytest_xdist_auto_num_workers() -> int:
    """One on a machine with a GPU: its tests measure memory, which is not to be shared. Elsewhere
    one a core, but no more than memory bears: each takes about a gigabyte."""
    return 1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1)


@pytest.fixture
def poisoned() -> Callable[..., torch.Tensor]:
    """Makes tensors full of NaN: what is read without having been written shows up."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    return make


@pytest.fixture(autouse=True)
def nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that tests run on is busy with them: what that disturbs is not done again."""
    monkeypatch.setattr("harness.runs.redo.BUDGET", 0.0)

"""Compiled work on torch's threads, and where these threads may run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cpu_compiled import jit, num_threads, on_threads
from kernels.cpu_cores import own_cores


@jit
def _square(thread, threads, values):  # type: ignore[no-untyped-def]
    if values[thread] < 0:
        raise ValueError
    values[thread] *= values[thread]


_square_on_threads = on_threads(_square)


@jit
def square(values):  # type: ignore[no-untyped-def]
    _square_on_threads(values.size, (values,))


def test_each_number_is_called_once() -> None:
    values = np.arange(9)
    square(values)
    assert values.tolist() == [n * n for n in range(9)]


def test_what_a_thread_raises_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="_square failed on a thread"):
        square(np.array([1, 2, -1, 3]))


@pytest.fixture
def cores() -> Iterator[set[int]]:
    """Those that this process may use, with as many threads as that."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system cannot bind a thread to a core")
    before, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(len(cores))
    if len(cores) < 2 or num_threads() != len(cores):
        pytest.skip("needs two cores and an OpenMP runtime of torch's")
    x = torch.ones(600, 600)
    x @ x  # all threads are there
    yield cores
    torch.set_num_threads(before)


def bound() -> Counter[int]:
    """How many threads of this process may only use that core."""
    threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
    chosen = [os.sched_getaffinity(thread) for thread in threads]
    return Counter(min(each) for each in chosen if len(each) == 1)


def test_a_thread_a_core(cores: set[int]) -> None:
    assert not bound()
    with own_cores():
        first = 0 if len(cores) == 2 else 1  # of more, what is started from here is not bound
        assert bound() == dict.fromkeys(sorted(cores)[first:], 1)
        x = torch.randn(600, 600)
        torch.testing.assert_close(x @ x, (x.double() @ x.double()).float(), rtol=1e-3, atol=1e-3)
    assert not bound()
    assert os.sched_getaffinity(0) == cores


def test_an_error_frees_the_cores(cores: set[int]) -> None:
    with pytest.raises(KeyError), own_cores():
        raise KeyError
    assert not bound()


def test_fewer_threads_than_cores_are_left_to_the_system(cores: set[int]) -> None:
    torch.set_num_threads(len(cores) - 1)
    with own_cores():
        assert not bound()

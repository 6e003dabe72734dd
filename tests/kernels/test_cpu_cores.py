"""Each of torch's threads has a core of its own within, and may go anywhere afterwards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.cpu_compiled import num_threads
from kernels.cpu_cores import own_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system cannot bind a thread to a core"
)


@pytest.fixture
def cores() -> Iterator[set[int]]:
    """Those that this process may use, with as many threads as that."""
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
        assert bound() == dict.fromkeys(cores, 1)
        assert os.sched_getaffinity(0) == {min(cores)}
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

"""The timer and the read kernel on a GPU: no figure is tested, only that they measure what they
are given."""

from __future__ import annotations

import pytest
import torch

from benchmarks.read_kernel import num_programs, read_all
from benchmarks.timing import EventTimer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_graph_of_calls_does_them_all_and_counts_one() -> None:
    """Twice the calls in turn is the same time a call, within a factor that no noise reaches."""
    tensors = [torch.zeros(2**24, device="cuda") for _ in range(4)]
    calls = [lambda t=t: t.add_(1) for t in tensors]  # type: ignore[misc]
    two, four = (EventTimer().time(calls[:n], limit_s=0.05) for n in (2, 4))
    assert two.method == four.method == "graph"
    assert 0.5 < two.median_us / four.median_us < 2
    counts = [float(t[0]) for t in tensors]
    assert counts[0] > counts[3] > 10
    assert all((t == t[0]).all() for t in tensors)


def test_what_waits_for_the_device_is_timed_by_events() -> None:
    tensor = torch.ones(2**20, device="cuda")
    timing = EventTimer().time([lambda: float(tensor.sum())], limit_s=0.05, capture=False)
    assert timing.method == "events" and timing.median_us > 0


@pytest.mark.parametrize(("block", "tiles"), [(2048, 1), (8192, 8)])
def test_the_read_kernel_reads_every_word_once(block: int, tiles: int) -> None:
    words = 5_000_001
    source = torch.randint(-512, 512, (words,), dtype=torch.int32, device="cuda")
    sums = source.new_zeros(num_programs(words, block, tiles))
    read_all(source, sums, block, tiles)
    assert int(sums.sum(dtype=torch.int64)) == int(source.sum(dtype=torch.int64))

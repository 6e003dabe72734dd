"""What a fresh executor is tried on, so that kernels are compiled before a run and not in it."""

from __future__ import annotations

from allocators.base import PageCopy
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.plan import Chunk, StepPlan, TableUpdate
from harness.engine.request import SamplingParams

WARM_UP_LEN = 8
"""Tokens of each sequence that a fresh executor is tried on."""


def warm_up_forward(executor: TorchExecutor, num_pages_each: int) -> None:
    """A prefill and a decode of two sequences, each on `num_pages_each` pages."""
    greedy = SamplingParams()
    prompt = (1,) * (WARM_UP_LEN - 1)
    prefill = tuple(Chunk(seq, 0, prompt, (greedy,)) for seq in (0, 1))
    tables = tuple(
        TableUpdate(seq, 0, tuple(range(num_pages_each * seq, num_pages_each * (seq + 1))))
        for seq in (0, 1)
    )
    executor.execute(StepPlan(prefill, tables))
    decode = tuple(Chunk(seq, len(prompt), (1,), (greedy,), 1) for seq in (0, 1))
    executor.execute(StepPlan(decode))


def warm_up_moves(executor: TorchExecutor) -> None:
    """Page copies with and without staging, and swap where there are pages on the host, on the
    pool itself: its strides decide what is compiled. Nothing lies in it yet."""
    last = executor.pool.num_pages - 1
    there, back = PageCopy(0, last), PageCopy(last, 0)
    executor.execute(StepPlan((), copies=(there,)))
    executor.execute(StepPlan((), copies=(there, back)))
    if executor.host_pool.num_pages:
        first = (PageCopy(0, 0),)
        executor.execute(StepPlan((), saves=first, restores=first))

"""Nothing grows in the steady state: the bytes held after many steps are those after few."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from counted_memory import CountedMemory

from allocators.base import PageCopy
from harness.config import DeviceConfig, EngineConfig, KVConfig, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.engine.plan import Chunk, StepPlan, TableUpdate
from harness.engine.request import SamplingParams
from harness.runs.device_memory import CudaMemory, DeviceMemory
from harness.runs.torch_device import TorchDevice

PAGE_SIZE, MAX_LEN, NUM_SEQS = 4, 64, 5
PAGES_EACH = MAX_LEN // PAGE_SIZE


def steps() -> Iterator[StepPlan]:
    """Without end: prompts of many lengths beside decodes, sequences that end and begin, copies
    with and without a chain, pages saved to the host and restored."""
    draw = (SamplingParams(),)
    lens = [0] * NUM_SEQS
    for number in itertools.count():
        chunks, updates, freed = [], [], []
        for seq in range(NUM_SEQS):
            size = 1 + (7 * number + seq) % 13 if lens[seq] == 0 else 1
            if lens[seq] + size > MAX_LEN - 3 * seq:
                freed.append(seq)
                lens[seq] = 0
                continue
            if lens[seq] == 0:
                first = seq * PAGES_EACH
                updates.append(TableUpdate(seq, 0, tuple(range(first, first + PAGES_EACH))))
            chunks.append(Chunk(seq, lens[seq], (number % 50,) * size, draw, lens[seq]))
            lens[seq] += size
        spare = NUM_SEQS * PAGES_EACH
        copies = [PageCopy(spare, spare + 1), PageCopy(spare + 1, spare + 2)][number % 3 :]
        moves = (PageCopy(number % 3, spare + 3), PageCopy(3, 4))[: number % 2]
        yield StepPlan(
            tuple(chunks),
            tuple(updates),
            tuple(freed),
            copies=tuple(copies),
            saves=tuple(PageCopy(spare, move.source) for move in moves),
            restores=tuple(moves),
        )


def check_steady(config: RunConfig, memory: DeviceMemory, few: int, many: int) -> None:
    device = TorchDevice(config.model, config.device, memory)
    num_pages = NUM_SEQS * PAGES_EACH + 5
    executor = device.executor(config, num_pages, MAX_LEN)
    held = []
    for number, plan in zip(range(many), steps(), strict=False):
        executor.execute(plan)
        if number + 1 in (few, many):
            held.append(memory.allocated_bytes())
    assert held[0] == held[1]
    assert held[0] > executor.kv_bytes
    executor.close()
    del executor
    assert device.is_clean()


def config_of(**engine: object) -> RunConfig:
    return RunConfig(
        model=model_preset("tiny", dtype="bfloat16"),
        device=DeviceConfig(),
        kv=KVConfig(page_size=PAGE_SIZE),
        engine=EngineConfig(preemption="swap", max_num_seqs=NUM_SEQS, **engine),  # type: ignore[arg-type]
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.parametrize("fused", [True, False])
def test_a_cpu_holds_as_much_after_many_steps(fused: bool) -> None:
    with CountedMemory(2**30) as memory:
        check_steady(config_of(fused=fused), memory, 60, 180)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [True, False])
def test_a_gpu_holds_as_much_after_many_steps(fused: bool) -> None:
    check_steady(config_of(fused=fused), CudaMemory(), 100, 10_000)

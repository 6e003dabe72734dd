"""A model split over two ranks chooses the tokens of the whole one, whatever moves its pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from experiments.equality import compare_tokens
from harness.compose import compose_run, hydra_session
from harness.config import RunConfig
from harness.engine.device.model_shape import ModelConfig, model_preset, model_shape
from harness.engine.device.torch_executor import TorchExecutor
from harness.measure.environment import capture_environment
from harness.runs.one_run import execute_run
from harness.runs.pool_size import kv_bytes_per_token, pool_pages
from harness.runs.store import RunRecord
from harness.runs.torch_device import TorchDevice
from harness.workloads.generate import generate

_TINY = model_preset("tiny")
MODELS = {
    "llama": _TINY,
    "qwen3": replace(_TINY, name="tiny_qwen3", family="qwen3"),
}
ALLOCATORS = ["contiguous", "paged", "paged_cow", "paged_prefix"]
TIGHT = (
    "workload=fixed",
    "workload.length_scale=1",
    "workload.max_len=48",
    "workload.prompt_len=16",
    "workload.output_len=24",
    "workload.num_requests=8",
    "kv.pool_tokens=120",
)
MODES = {
    "greedy": (),
    "n=4": ("workload.samples=4", "workload.temperature=0.8"),
    "beam": ("workload.beam_width=4",),
    "swap": (*TIGHT, "engine.preemption=swap"),
    "recompute": TIGHT,
    "draft": (
        "engine.speculation.method=draft_model",
        "engine.speculation.draft=tiny",
        "kv.pool_tokens=800",
    ),
    "static": ("engine.schedule=static", "engine.batch_size=4"),
    "ngram": ("engine.speculation.method=ngram",),
}


class Pair(NamedTuple):
    whole: TorchDevice
    split: TorchDevice


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The same model on one rank and on two."""
    with hydra_session():
        device = compose_run(["device=cpu", "device.threads=1"]).device
    model: ModelConfig = MODELS[request.param]
    split = TorchDevice(model, device, tensor_parallel=2)
    yield Pair(TorchDevice(model, device), split)
    split.close()


def _config(allocator: str, mode: str, *more: str) -> RunConfig:
    fixed = ["model=tiny", "workload.num_requests=6", "workload.length_scale=0.05", "device=cpu"]
    own = [f"allocator={allocator}", "kv.page_size=4", "engine.token_budget=64"]
    own += ["workload.output=forced_length"]
    if allocator == "contiguous":
        own += ["allocator.expected=oracle"]
    with hydra_session():
        return compose_run([*fixed, *own, *MODES[mode], *more])


def _run(config: RunConfig, device: TorchDevice, folder: Path) -> RunRecord:
    folder.mkdir()
    return execute_run(config, "run", "label", device, capture_environment("cpu", 1), folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_tokens_are_those_of_one_rank(
    pair: Pair, allocator: str, mode: str, tmp_path: Path
) -> None:
    config = _config(allocator, mode)
    one = _run(config, pair.whole, tmp_path / "one")
    config = replace(config, engine=replace(config.engine, tensor_parallel=2))
    two = _run(config, pair.split, tmp_path / "two")
    frames = [pd.read_parquet(record.requests) for record in (one, two)]
    assert sum(map(len, frames[0]["chosen_ids"])) > 20
    assert not compare_tokens(*frames, forced=False)
    summary = two.summary[0]
    assert summary["broadcast_bytes_per_step"] > 0
    assert one.summary[0]["broadcast_bytes_per_step"] == 0
    if allocator != "contiguous":  # which reserves beforehand and takes nothing back
        assert (summary["swaps"] > 0) == (mode == "swap")
        assert (summary["preemptions"] > 0) == (mode in ("swap", "recompute"))


def test_two_ranks_hold_twice_the_tokens(pair: Pair) -> None:
    """The same bytes on each rank, and half a token's heads in them."""
    assert pair.whole.shape.num_kv_heads == 2
    sizes = {}
    for ranks, device in ((1, pair.whole), (2, pair.split)):
        num_pages = 24 * ranks
        executor = device.executor(_config("paged", "greedy"), num_pages, max_len=64)
        assert isinstance(executor, TorchExecutor)
        sizes[ranks] = (executor.pool.storage.nbytes, executor.pool.num_pages)
        executor.close()
    assert sizes[2] == (sizes[1][0], 2 * sizes[1][1])


def test_memory_counts_for_every_rank() -> None:
    """What a fraction of each rank's memory leaves for pages: twice as much, and the weights that
    one rank need not hold twice."""
    tokens = {}
    for ranks in (1, 2):
        with hydra_session():
            config = compose_run(
                [
                    "model=tiny",
                    "device=cpu",
                    "device.imagined_memory_gib=0.02",
                    "kv.memory_fraction=0.5",
                    f"engine.tensor_parallel={ranks}",
                ]
            )
        shape = model_shape(config.model)
        workload = generate(config.workload, seed=0, vocab_size=shape.vocab_size)
        memory = int(0.02 * 2**30) * ranks
        tokens[ranks] = pool_pages(config, shape, workload, memory) * config.kv.page_size
        assert kv_bytes_per_token(config, shape) == shape.kv_bytes_per_token
    weights = model_shape(model_preset("tiny")).weight_bytes
    more = weights // shape.kv_bytes_per_token
    assert tokens[2] == pytest.approx(2 * tokens[1] + more, abs=32)

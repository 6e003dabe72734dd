"""CUDA graphs and the overlap on a GPU: the same tokens, fixed addresses, and no waiting."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from model_driver import drive

from harness.config import DeviceConfig, EngineConfig, KVConfig, RunConfig
from harness.engine.device.capture import CudaCapture
from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.plan import PENDING_TOKEN, Chunk, StepPlan, TableUpdate
from harness.engine.request import Request, SamplingParams, Workload
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCAB, PAGE_SIZE, NUM_PAGES, NUM_OUTPUT = 512, 16, 400, 40
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MODEL = ModelConfig("small", "llama", SHAPE, initializer_range=0.15)
WINDOWED = ModelConfig("small", "gemma2", SHAPE | {"sliding_window": 19}, initializer_range=0.15)
GREEDY = SamplingParams()
SAMPLED = SamplingParams(0.9, 40, 0.9, seed=3)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(MODEL, "cuda")


def executor(loaded: LoadedModel, graphs: bool, **options: object) -> TorchExecutor:
    device = torch.device("cuda", torch.cuda.current_device())
    return TorchExecutor(
        loaded,
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        max_seqs=24,
        max_len=128,
        poison=True,
        capture=CudaCapture(device) if graphs else None,
        **options,
    )


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


def tokens(built: TorchExecutor, count: int, **options: object) -> list[list[int]]:
    return drive(
        built, prompts(count), NUM_OUTPUT, num_pages=NUM_PAGES, page_size=PAGE_SIZE, **options
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_are_those_of_the_eager_path(family: str, fused: bool) -> None:
    own = load_model(MODEL if family == "llama" else WINDOWED, "cuda")
    expected = tokens(executor(own, False, fused=fused), 20)
    graphed = executor(own, True, fused=fused)
    assert graphed.captured.sizes == (1, 2, 4, 8, 16, 24)
    assert graphed.captured.seconds > 0
    for _ in range(2):
        assert tokens(graphed, 20) == expected


def test_random_draws_are_the_same(loaded: LoadedModel) -> None:
    params = [GREEDY if i % 4 == 0 else SAMPLED for i in range(20)]
    expected = tokens(executor(loaded, False), 20, sampling=params)
    assert tokens(executor(loaded, True, samples=True), 20, sampling=params) == expected


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("draw", [GREEDY, SAMPLED])
def test_a_step_is_submitted_without_waiting(
    loaded: LoadedModel, draw: SamplingParams, graphs: bool
) -> None:
    """torch raises an error where the host would wait for the device."""
    built = executor(loaded, graphs, samples=True)
    tables = tuple(TableUpdate(i, 0, (3 * i, 3 * i + 1)) for i in range(5))

    def plans() -> Iterator[StepPlan]:
        yield StepPlan(tuple(Chunk(i, 0, (7, i, 9), (draw,)) for i in range(5)), tables)
        for position in range(3, 20):
            late = (PENDING_TOKEN,)
            yield StepPlan(tuple(Chunk(i, position, late, (draw,), position - 2) for i in range(5)))

    for turn in range(2):  # in the first, whatever is loaded lazily is loaded
        pending = None
        torch.cuda.synchronize()
        for plan in plans():
            torch.cuda.set_sync_debug_mode("error" if turn else "default")
            try:
                following = built.submit(plan)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if pending is not None:
                outcome = built.result(pending)
                assert outcome.device_s > 0
            pending = following
        assert len(built.result(pending).token_ids) == 5


def serve(device: TorchDevice, **engine: object) -> tuple[dict[int, list[int]], KeptRecords]:
    config = RunConfig(
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=1024),
        engine=EngineConfig(token_budget=128, max_num_seqs=24, **engine),
        model=MODEL,
        device=DeviceConfig("cuda"),
    )
    requests = tuple(
        Request(i, 0.0, tuple(prompt), max_tokens=NUM_OUTPUT, forced_len=NUM_OUTPUT - i)
        for i, prompt in enumerate(prompts(24))
    )
    records = KeptRecords()
    workload = Workload("test", requests, "")
    run = prepare(config, workload, 1024 // PAGE_SIZE, device, records)
    try:
        run.run()
    finally:
        run.executor.close()
    return {record.request_id: record.chosen_ids for record in records.requests}, records


def test_a_whole_run_gives_the_same_tokens_with_and_without() -> None:
    device = TorchDevice(MODEL, DeviceConfig("cuda"))
    expected, _ = serve(device, cuda_graph=False, overlap=False)
    for switches in ((True, False), (False, True), (True, True)):
        graphs, overlap = switches
        got, records = serve(device, cuda_graph=graphs, overlap=overlap)
        assert got == expected
        assert sum(record.num_preemptions for record in records.requests) > 0
        for step in records.steps:
            assert step.device_us > 0
            assert step.host_us >= 0


def test_a_run_leaves_no_graph_behind() -> None:
    device = TorchDevice(MODEL, DeviceConfig("cuda"))
    for _ in range(3):
        serve(device)
    assert device.is_clean()

"""The whole engine on a real model: its tokens are those of transformers' own generate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from harness.config import (
    AllocatorConfig,
    DeviceConfig,
    EngineConfig,
    KVConfig,
    RunConfig,
)
from harness.engine.device.model_shape import model_preset
from harness.engine.device.models import load_model
from harness.engine.request import Request, SamplingParams, Workload
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice

STRATEGIES = [
    AllocatorConfig("contiguous", "max", options={"fit": "buddy"}),
    AllocatorConfig("contiguous", "oracle", options={"fit": "first_fit"}),
    AllocatorConfig("contiguous", "pow2", options={"fit": "best_fit"}),
    AllocatorConfig("paged"),
    AllocatorConfig("paged_cow"),
    AllocatorConfig("paged_prefix"),
]


def _name(strategy: AllocatorConfig) -> str:
    return f"{strategy.name}-{strategy.options.get('fit', '')}-{strategy.expected}"


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    return TorchDevice(model_preset("tiny"), DeviceConfig(kind="cpu"))


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(1)
    shared = tuple(int(i) for i in rng.integers(3, 250, 13))
    lengths = [5, 17, 1, 30, 9, 12, 21, 3]
    own = [tuple(int(i) for i in rng.integers(3, 250, n)) for n in lengths]
    return [shared + own[k] if k % 2 else own[k] for k in range(len(own))]


@pytest.fixture(scope="module")
def expected(device: TorchDevice, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Greedy continuations by transformers, with its own attention and cache."""
    from transformers import AutoModelForCausalLM

    ours = load_model(model_preset("tiny")).model
    config = copy.deepcopy(ours.config)
    config._attn_implementation = "eager"
    theirs = AutoModelForCausalLM.from_config(config)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    outputs = []
    for k, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        done = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=output_len(k),
            eos_token_id=10**9,  # forced lengths ignore end-of-sequence
            pad_token_id=0,
        )
        outputs.append(done[0, len(prompt) :].tolist())
    return outputs


def output_len(index: int) -> int:
    return 6 + 5 * (index % 4)


def run(
    device: TorchDevice,
    prompts: list[tuple[int, ...]],
    strategy: AllocatorConfig,
    *,
    page_size: int = 4,
    pool_tokens: int = 160,
    engine: EngineConfig | None = None,
    forced: list[list[int]] | None = None,
    sampling: SamplingParams | None = None,
    spoil: bool = False,
):
    config = RunConfig(
        allocator=strategy,
        kv=KVConfig(page_size=page_size, pool_tokens=pool_tokens),
        engine=engine or EngineConfig(token_budget=24, max_num_seqs=8),
        model=model_preset("tiny"),
        device=DeviceConfig(kind="cpu"),
    )
    requests = tuple(
        Request(
            k,
            0.0,
            prompt,
            max_tokens=output_len(k),
            forced_len=None if forced else output_len(k),
            forced_ids=tuple(forced[k]) if forced else None,
            shared_prefix_id=0 if k % 2 else -1,
            shared_prefix_len=13 if k % 2 else 0,
            sampling=sampling or SamplingParams(),
        )
        for k, prompt in enumerate(prompts)
    )
    workload = Workload("test", requests, "")
    prepared = prepare(config, workload, pool_tokens // page_size, device, KeptRecords())
    if spoil:
        spoil_tables(prepared.executor)
    prepared.run()
    records = sorted(prepared.recorder.sink.requests, key=lambda record: record.request_id)
    return records, prepared


def spoil_tables(executor) -> None:
    """From now on the second page of every table is another sequence's, or simply wrong."""
    update = executor.batches.update

    def wrong(updates):
        planted = []
        for each in updates:
            pages = list(each.page_ids)
            if each.first == 0 and len(pages) > 1:
                pages[1] = (pages[1] + 1) % 40
            planted.append(each._replace(page_ids=tuple(pages)))
        update(tuple(planted))

    executor.batches.update = wrong


@pytest.mark.parametrize("schedule", ["mixed_chunked", "mixed_unchunked"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_greedy_tokens_equal_generate(device, prompts, expected, strategy, schedule):
    engine = EngineConfig(schedule=schedule, token_budget=24, max_num_seqs=8)
    records, _ = run(device, prompts, strategy, engine=engine)
    assert [record.chosen_ids for record in records] == expected


@pytest.mark.parametrize("strategy", STRATEGIES[3:], ids=_name)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_preemption_changes_no_token(device, prompts, expected, strategy, page_size):
    records, _ = run(device, prompts, strategy, page_size=page_size, pool_tokens=96)
    assert sum(record.num_preemptions for record in records) > 0
    assert [record.chosen_ids for record in records] == expected


@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_forced_ids_record_the_models_own_choice(device, prompts, expected, strategy):
    forced = [list(reversed(output)) for output in expected]
    records, _ = run(device, prompts, strategy, forced=forced)
    assert [record.chosen_ids[0] for record in records] == [output[0] for output in expected]
    reference, _ = run(device, prompts, STRATEGIES[3], forced=forced, pool_tokens=640)
    assert [r.chosen_ids for r in records] == [r.chosen_ids for r in reference]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_sampled_tokens_do_not_depend_on_strategy_or_batch(device, prompts, strategy):
    sampling = SamplingParams(temperature=0.9, top_k=50, top_p=0.95, seed=7)
    records, _ = run(device, prompts, strategy, sampling=sampling)
    alone = EngineConfig(token_budget=64, max_num_seqs=1)
    reference, _ = run(device, prompts, STRATEGIES[3], sampling=sampling, engine=alone)
    assert [r.chosen_ids for r in records] == [r.chosen_ids for r in reference]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_a_planted_wrong_page_is_seen(device, prompts, expected, strategy):
    records, _ = run(device, prompts, strategy, spoil=True)
    assert [record.chosen_ids for record in records] != expected


def test_pool_is_what_the_ledger_says(device, prompts):
    _, prepared = run(device, prompts, STRATEGIES[3], pool_tokens=160)
    measured = prepared.executor.pool.storage.untyped_storage().nbytes()
    assert measured == 160 * device.shape.kv_bytes_per_token


def test_a_free_output_ends_at_the_models_own_end_of_sequence(device, prompts, expected):
    assert device.eos_ids == frozenset({2}), "Llama's, which the presets keep"
    third = expected[3][2]
    stops = frozenset({third})
    request = Request(0, 0.0, prompts[3], max_tokens=21, eos_ids=stops)
    config = RunConfig(kv=KVConfig(page_size=4), model=model_preset("tiny"))
    workload = Workload("free", (request,), "")
    prepared = prepare(config, workload, 40, device, KeptRecords())
    prepared.run()
    (record,) = prepared.recorder.sink.requests
    assert record.chosen_ids == expected[3][: expected[3].index(third) + 1]
    assert len(prepared.recorder.sink.entries) == len(prepared.recorder.sink.steps)


def test_one_sequence_at_a_time_runs_on_a_cold_device(prompts, expected):
    cold = TorchDevice(model_preset("tiny"), DeviceConfig(kind="cpu"))
    alone = EngineConfig(token_budget=64, max_num_seqs=1)
    records, _ = run(cold, prompts[:2], STRATEGIES[3], engine=alone, page_size=1)
    assert [record.chosen_ids for record in records] == expected[:2]

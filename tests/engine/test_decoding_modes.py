"""Every way of decoding gives the reference's tokens, under every allocator."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from allocators import discovery
from experiments.modes.cases import FAMILIES, PAGE_SIZE, save_near_draft
from experiments.modes.reference import transformers_model
from experiments.modes.runs import CPU
from harness.config import AllocatorConfig, EngineConfig, KVConfig, RunConfig
from harness.engine.device.model_shape import ModelConfig
from harness.engine.request import Request, SamplingParams, Workload
from harness.engine.scheduling.beam_search import BeamParams
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.measure.ledger import CLASSES
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice

STRATEGIES = [
    AllocatorConfig("contiguous", "max", options={"fit": "buddy"}),
    AllocatorConfig("contiguous", "oracle", options={"fit": "first_fit"}),
    AllocatorConfig("contiguous", "predicted", 0.6, 0.5, options={"fit": "best_fit"}),
    *(AllocatorConfig(name) for name in discovery.available() if name != "contiguous"),
]


def _name(strategy: AllocatorConfig) -> str:
    return f"{strategy.name}-{strategy.options.get('fit', '')}-{strategy.expected}"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def devices() -> Iterator[dict[str, TorchDevice]]:
    gc.freeze()  # each run begins with a collection, which need not look at what was imported
    yield {name: TorchDevice(config, CPU) for name, config in FAMILIES.items()}
    gc.unfreeze()


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(1)
    shared = tuple(int(i) for i in rng.integers(3, 250, 13))
    lengths = [5, 17, 1, 26, 9, 12]
    own = [tuple(int(i) for i in rng.integers(3, 250, n)) for n in lengths]
    return [shared + own[k] if k % 2 else own[k] for k in range(len(own))]


def output_len(index: int) -> int:
    return 5 + 4 * (index % 3)


def serve(
    device: TorchDevice,
    config: ModelConfig,
    requests: list[Request],
    strategy: AllocatorConfig,
    *,
    pool_tokens: int = 240,
    **engine: Any,
) -> tuple[dict[int, list[list[int]]], Any]:
    """Output tokens by request, a list a sequence, and the prepared run."""
    run = RunConfig(
        allocator=strategy,
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=pool_tokens),
        engine=EngineConfig(**({"token_budget": 24, "max_num_seqs": 16} | engine)),
        model=config,
        device=CPU,
    )
    workload = Workload("test", tuple(requests), "")
    prepared = prepare(run, workload, pool_tokens // PAGE_SIZE, device, KeptRecords())
    prepared.run()
    for entry in prepared.recorder.sink.entries:
        assert sum(entry[: len(CLASSES)]) == pool_tokens * prepared.num_layer_groups
    outputs = {}
    for record in prepared.recorder.sink.requests:
        assert record.status == "finished", record.reason
        ends = np.cumsum(record.sequence_lens)
        cut = np.split(np.array(record.chosen_ids), ends[:-1])
        outputs[record.request_id] = [part.tolist() for part in cut]
    prepared.executor.close()
    return outputs, prepared


def make_requests(prompts: list[tuple[int, ...]], **fields: Any) -> list[Request]:
    return [
        Request(
            k,
            0.0,
            prompt,
            max_tokens=output_len(k) + 3,
            forced_len=None if "eos_ids" in fields else output_len(k),
            shared_prefix_id=0 if k % 2 else -1,
            shared_prefix_len=13 if k % 2 else 0,
            **fields,
        )
        for k, prompt in enumerate(prompts)
    ]


BEAMS = [
    ("plain", BeamParams(4), frozenset[int]()),
    ("eos", BeamParams(3, 0.0), frozenset({5, 17, 40, 99, 120, 200, 201, 202})),
    ("early", BeamParams(2, 2.0, early_stopping=True), frozenset({5, 17, 40, 99, 120, 200})),
]


@pytest.fixture(scope="module")
def beam_references(prompts: list[tuple[int, ...]]) -> dict[tuple[str, str], list[list[list[int]]]]:
    """All of generate's beams, for each family and setting."""
    found = {}
    for family, config in FAMILIES.items():
        model = transformers_model(config)
        for name, params, eos_ids in BEAMS:
            found[family, name] = [
                _generate(model, prompt, params, eos_ids, index)
                for index, prompt in enumerate(prompts)
            ]
    return found


def _generate(
    model: Any, prompt: tuple[int, ...], params: BeamParams, eos_ids: frozenset[int], index: int
) -> list[list[int]]:
    ids = torch.tensor([prompt])
    done = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=params.width,
        num_return_sequences=params.width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=output_len(index) + (3 if eos_ids else 0),
        eos_token_id=sorted(eos_ids) if eos_ids else 10**9,
        pad_token_id=0,
    )
    rows = done[:, len(prompt) :].tolist()
    return [_until_end(row, eos_ids) for row in rows]


def _until_end(row: list[int], eos_ids: frozenset[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in eos_ids:
            return row[: index + 1]
    return row


@pytest.mark.parametrize("beams", BEAMS, ids=lambda beams: beams[0])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_beam_search_equals_generate(
    devices: Any, prompts: Any, beam_references: Any, family: str, strategy: Any, beams: Any
) -> None:
    name, params, eos_ids = beams
    if eos_ids and strategy.expected in ("oracle", "predicted"):
        strategy = replace(strategy, expected="none")  # nobody knows where such an output ends
    fields: dict[str, Any] = {"beam": params}
    if eos_ids:
        fields["eos_ids"] = eos_ids
    outputs, prepared = serve(
        devices[family], FAMILIES[family], make_requests(prompts, **fields), strategy,
        pool_tokens=320,
    )  # fmt: skip
    assert [outputs[k] for k in range(len(prompts))] == beam_references[family, name]
    prepared.allocator.check_integrity()


SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=7)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "samples": {"num_samples": 4, "sampling": SAMPLED},
    "beams": {"beam": BEAMS[0][1]},
}


@pytest.fixture(scope="module")
def samples(devices: Any, prompts: Any) -> list[list[list[int]]]:
    """Four samples of each prompt, each as a request of its own with the sample's stream."""
    alone = []
    for index, prompt in enumerate(prompts):
        requests = [
            Request(
                k, 0.0, prompt, output_len(index), forced_len=output_len(index),
                sampling=SAMPLED.for_sample(k),
            )
            for k in range(4)
        ]  # fmt: skip
        outputs, _ = serve(
            devices["llama"], FAMILIES["llama"], requests, AllocatorConfig("paged"),
            pool_tokens=800,
        )  # fmt: skip
        alone.append([outputs[k][0] for k in range(4)])
    return alone


@pytest.mark.parametrize(
    "schedule", ["mixed_chunked", "mixed_unchunked", "prefill_first", "static"]
)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_samples_are_those_of_requests_of_their_own(
    devices: Any, prompts: Any, samples: Any, strategy: Any, schedule: str
) -> None:
    requests = make_requests(prompts, num_samples=4, sampling=SAMPLED)
    outputs, prepared = serve(
        devices["llama"], FAMILIES["llama"], requests, strategy, schedule=schedule, pool_tokens=320
    )
    assert [outputs[k] for k in range(len(prompts))] == samples
    assert len({tuple(map(tuple, each)) for each in samples}) == len(prompts)
    prepared.allocator.check_integrity()


@pytest.mark.parametrize("victim", ["latest", "longest", "least_progress", "cheapest"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("kind", ["greedy", "samples", "beams"])
@pytest.mark.parametrize("strategy", STRATEGIES[2:], ids=_name)
def test_preemption_changes_no_token(
    devices: Any,
    prompts: Any,
    samples: Any,
    beam_references: Any,
    strategy: Any,
    kind: str,
    preemption: str,
    victim: str,
) -> None:
    requests = make_requests(prompts, **KINDS[kind])
    pool = 56 if kind == "greedy" else 224
    outputs, prepared = serve(
        devices["llama"], FAMILIES["llama"], requests, strategy,
        pool_tokens=pool, preemption=preemption, victim=victim, watermark=0.0,
    )  # fmt: skip
    if kind == "samples":
        assert [outputs[k] for k in range(len(prompts))] == samples
    elif kind == "beams":
        wanted = beam_references["llama", "plain"]
        assert [outputs[k] for k in range(len(prompts))] == wanted
    else:
        roomy, _ = serve(devices["llama"], FAMILIES["llama"], requests, strategy, pool_tokens=800)
        assert outputs == roomy
    preempted = sum(record.num_preemptions for record in prepared.recorder.sink.requests)
    swaps = sum(record.num_swaps for record in prepared.recorder.sink.requests)
    if strategy.name == "paged":
        assert preempted
        assert (swaps > 0) == (preemption == "swap")
    prepared.allocator.check_integrity()


LONG_OUTPUT = 30


def long_requests(prompts: list[tuple[int, ...]], **fields: Any) -> list[Request]:
    """Outputs of several windows' length after short prompts."""
    return [
        Request(k, 0.0, prompt[:9], max_tokens=LONG_OUTPUT, forced_len=LONG_OUTPUT, **fields)
        for k, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def windowed(devices: Any, prompts: Any) -> dict[str, Any]:
    """What gemma2 answers where all layers keep everything; greedily what `generate` does."""
    whole = AllocatorConfig("contiguous", "max", options={"fit": "first_fit"})
    outputs = {}
    for kind, fields in KINDS.items():
        outputs[kind], prepared = serve(
            devices["gemma2"], FAMILIES["gemma2"], long_requests(prompts, **fields), whole,
            pool_tokens=2000,
        )  # fmt: skip
        assert prepared.num_layer_groups == 1
    model = transformers_model(FAMILIES["gemma2"])
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt[:9]])
        ids = model.generate(ids, max_new_tokens=LONG_OUTPUT, do_sample=False)
        assert outputs["greedy"][index] == [ids[0, len(prompt[:9]) :].tolist()]
    return outputs


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize(
    ("kind", "speculation"),
    [("greedy", "none"), ("greedy", "ngram"), ("samples", "none"), ("beams", "none")],
)
@pytest.mark.parametrize("name", ["paged", "paged_cow", "paged_prefix"])
def test_groups_of_layers_change_no_token(
    devices: Any,
    prompts: Any,
    windowed: Any,
    name: str,
    kind: str,
    preemption: str,
    speculation: Any,
) -> None:
    outputs, prepared = serve(
        devices["gemma2"], FAMILIES["gemma2"], long_requests(prompts, **KINDS[kind]),
        AllocatorConfig(name), pool_tokens=40 if kind == "greedy" else 160,
        preemption=preemption, watermark=0.0,
        speculation=SpeculationConfig(speculation, num_tokens=3),
    )  # fmt: skip
    assert prepared.num_layer_groups == 2
    assert outputs == windowed[kind]
    assert sum(record.num_preemptions for record in prepared.recorder.sink.requests)
    swaps = sum(record.num_swaps for record in prepared.recorder.sink.requests)
    assert (swaps > 0) == (preemption == "swap")
    prepared.allocator.check_integrity()


def test_pages_that_windows_left_behind_serve_the_full_layers(devices: Any, prompts: Any) -> None:
    """40 slots a layer are one request's; what windowed layers have no more use for lets another
    run beside it."""
    requests = long_requests(prompts)
    steps = {}
    for name in ("contiguous", "paged"):
        _, prepared = serve(
            devices["gemma2"], FAMILIES["gemma2"], requests,
            AllocatorConfig(name, options={"fit": "first_fit"} if name == "contiguous" else {}),
            pool_tokens=40, watermark=0.0,
        )  # fmt: skip
        steps[name] = prepared.recorder.sink
    entries = steps["paged"].entries
    assert max(entry.mapped_pages for entry in entries) > 40 // PAGE_SIZE
    assert max(entry.dead_window for entry in entries) < PAGE_SIZE * len(prompts)
    assert len(steps["paged"].steps) < len(steps["contiguous"].steps)


@pytest.mark.parametrize(("swap_tokens", "swaps_all"), [(0, False), (None, True)])
def test_without_host_pages_it_recomputes(
    devices: Any, prompts: Any, swap_tokens: int | None, swaps_all: bool
) -> None:
    requests = make_requests(prompts)
    paged = AllocatorConfig("paged")
    roomy, _ = serve(devices["llama"], FAMILIES["llama"], requests, paged, pool_tokens=800)
    outputs, prepared = serve(
        devices["llama"], FAMILIES["llama"], requests, paged,
        pool_tokens=56, preemption="swap", swap_tokens=swap_tokens, watermark=0.0,
    )  # fmt: skip
    assert outputs == roomy
    records = prepared.recorder.sink.requests
    preemptions = sum(record.num_preemptions for record in records)
    assert preemptions
    assert sum(record.num_swaps for record in records) == (preemptions if swaps_all else 0)


@pytest.fixture(scope="module")
def plain(devices: Any, prompts: Any) -> dict[int, list[list[int]]]:
    """Greedy outputs, one token a step."""
    paged = AllocatorConfig("paged")
    found, _ = serve(
        devices["llama"], FAMILIES["llama"], make_requests(prompts), paged, pool_tokens=800
    )
    return found


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Draft models: the model itself, which is always right, and one near it, often right."""
    folder = tmp_path_factory.mktemp("near")
    save_near_draft(FAMILIES["llama"], folder)
    return {"same": "tiny", "near": str(folder)}


@pytest.mark.parametrize("pool_tokens", [64, 800])
@pytest.mark.parametrize("method", ["ngram", "same", "near"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_speculation_is_lossless(
    devices: Any,
    prompts: Any,
    plain: Any,
    drafts: Any,
    strategy: Any,
    method: str,
    pool_tokens: int,
) -> None:
    speculation = (
        SpeculationConfig("ngram", num_tokens=3)
        if method == "ngram"
        else SpeculationConfig("draft_model", num_tokens=3, draft=drafts[method])
    )
    outputs, prepared = serve(
        devices["llama"], FAMILIES["llama"], make_requests(prompts), strategy,
        pool_tokens=pool_tokens, speculation=speculation, watermark=0.0,
    )  # fmt: skip
    assert outputs == plain
    records = prepared.recorder.sink.requests
    drafted = sum(record.num_drafted_tokens for record in records)
    accepted = sum(record.num_accepted_tokens for record in records)
    if method == "same":
        assert drafted == accepted > 0
    elif method == "near":
        assert 0 < accepted < drafted
    for entry in prepared.recorder.sink.draft_entries:
        assert sum(entry[: len(CLASSES)]) == pool_tokens
    assert bool(prepared.recorder.sink.draft_entries) == (method != "ngram")
    prepared.allocator.check_integrity()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=_name)
def test_speculation_samples_what_its_seed_says(
    devices: Any, prompts: Any, samples: Any, drafts: Any, strategy: Any
) -> None:
    """Drafts that are no draws of chance change no sample; drawn ones only its luck."""
    requests = make_requests(prompts, num_samples=4, sampling=SAMPLED)
    for method, same in (("ngram", True), ("draft_model", False)):
        speculation = SpeculationConfig(
            method, num_tokens=2, draft=drafts["near"] if method == "draft_model" else None
        )
        outputs, prepared = serve(
            devices["llama"], FAMILIES["llama"], requests, strategy,
            pool_tokens=400, token_budget=64, speculation=speculation,
        )  # fmt: skip
        found = [outputs[k] for k in range(len(prompts))]
        assert (found == samples) == same
        assert [[len(each) for each in one] for one in found] == [
            [len(each) for each in one] for one in samples
        ]
        prepared.allocator.check_integrity()


def test_more_branches_than_can_run_are_refused(devices: Any, prompts: Any) -> None:
    too_many = [replace(make_requests(prompts)[0], num_samples=17)]
    with pytest.raises(AssertionError, match=r"asks for 17 samples.*at most 16 sequences run"):
        serve(devices["llama"], FAMILIES["llama"], too_many, AllocatorConfig("paged"))
    too_large = [replace(make_requests(prompts)[0], beam=BeamParams(12))]
    with pytest.raises(AssertionError, match=r"needs up to 144 token slots \(12 beams, each"):
        serve(
            devices["llama"], FAMILIES["llama"], too_large, AllocatorConfig("paged"),
            pool_tokens=140,
        )  # fmt: skip

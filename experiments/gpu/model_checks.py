"""The engine's logits, fed given tokens, beside those of transformers' own attention without a
cache; and its greedy tokens in fp32 under several strategies and with each fast path off.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from experiments.gpu.child import Task, conclude, guarded, parser, task
from experiments.gpu.ragged import relative_error
from experiments.gpu.rows import RowLog
from harness.config import (
    AllocatorConfig,
    AttentionConfig,
    DeviceConfig,
    EngineConfig,
    KVConfig,
    RunConfig,
)
from harness.engine.device.batch import BatchBuilder
from harness.engine.device.kv_pool import KVPool
from harness.engine.device.model_runner import ModelRunner
from harness.engine.device.model_shape import ModelConfig, model_preset
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.plan import Chunk, TableUpdate
from harness.engine.request import Request, SamplingParams, Workload
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice
from kernels.backend import load

MOST_BEYOND_THEIRS = 1.5
ROUNDING = {"float32": 1e-5, "bfloat16": 5e-3}
"""The engine's logits may be off by so many times what transformers' are, and by so much more."""

MARGIN_LIMIT = 1e-3
Outputs = dict[int, tuple[list[int], list[float]]]
"""By request: its tokens, and how far each was ahead of the second best."""

_TWICE = {"float32": torch.float64, "bfloat16": torch.float32}
_LENGTHS, _DRY_LENGTHS = (5, 170, 700, 701), (3, 9)
_MOST_SINGLE = 8
_OUTPUTS, _DRY_OUTPUTS = (24, 32, 40, 48), (3, 5)
_PAGE = 4
_POOL_TOKENS = 256
_SWITCHES = ("cuda_graph", "overlap", "fused")


class Setting(NamedTuple):
    name: str
    allocator: AllocatorConfig
    engine: dict[str, Any]


def main() -> int:
    given = task(parser(__doc__))
    device = "cpu" if given.dry else "cuda"
    log = given.log()
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths = _DRY_LENGTHS if given.dry else _LENGTHS
    for name, config in shapes(given.dry):
        for dtype in ("float32",) if given.dry else ("float32", "bfloat16"):
            case = f"logits, {name}, {dtype}"
            if log.is_done(case):
                continue
            if given.budget.left_s < 0:
                log.add(case, "cut")
                continue
            model = replace(config, dtype=dtype)
            guarded(log, case, _logits, log, case, model, device, lengths)
    check_tokens(given, log, device)
    print(f"{len(log.cases('ok'))} checks passed", flush=True)
    return conclude(log)


def _logits(
    log: RowLog, case: str, config: ModelConfig, device: str, lengths: Sequence[int]
) -> None:
    values = check_logits(config, device, lengths)
    passed = values["error_norm"] <= values["tolerance"]
    if not passed:
        values["error"] = f"error {values['error_norm']:.2g} over {values['tolerance']:g}"
    log.add(case, "ok" if passed else "failed", **values)
    print(
        f"{case}: off by {values['error_norm']:.1e}, transformers by {values['theirs']:.1e}",
        flush=True,
    )


def shapes(dry: bool) -> Iterator[tuple[str, ModelConfig]]:
    """Models with random weights: grouped queries, a window with softcap, learned positions."""
    yield "llama", model_preset("tiny")
    like = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "tie_word_embeddings": False,
    }  # fmt: skip
    gemma = {"sliding_window": 11, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}
    opt = {
        "vocab_size": 512, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 1024, "word_embed_proj_dim": 64,
    }  # fmt: skip
    yield "gemma2", ModelConfig("gemma2", "gemma2", {**like, **gemma}, initializer_range=0.2)
    yield "opt", ModelConfig("opt", "opt", opt, initializer_range=0.4)
    if not dry:
        yield "qwen3", ModelConfig("qwen3", "qwen3", like, initializer_range=0.2)
        yield "small", model_preset("small")
        two_layers = {**model_preset("llama_3_1_8b").config, "num_hidden_layers": 2}
        yield "llama_3_1_8b, 2 layers", ModelConfig("8b_2", "llama", two_layers)


@torch.inference_mode()
def check_logits(
    config: ModelConfig, device: str, lengths: Sequence[int], kernels: str = "triton"
) -> dict[str, Any]:
    """All positions of prompts of these lengths, by the engine and by transformers, each against
    the same weights in twice the precision: relative errors in norm."""
    loaded = load_model(config, device)
    prompts = _prompts(loaded.shape.vocab_size, lengths)
    ours = torch.cat(engine_logits(loaded, prompts, device, kernels))
    model = loaded.model
    own = "eager" if config.family == "gemma2" else "sdpa"  # its softcap needs eager attention
    model.set_attn_implementation(own)

    def own_logits(model: Any) -> torch.Tensor:
        ids = [torch.tensor([prompt], device=device) for prompt in prompts]
        return torch.cat([model(each, use_cache=False).logits[0] for each in ids])

    theirs = own_logits(model)
    exact = own_logits(copy.deepcopy(model).to(_TWICE[config.dtype]))
    error, beside = relative_error(ours, exact), relative_error(theirs, exact)
    tolerance = MOST_BEYOND_THEIRS * beside + ROUNDING[config.dtype]
    return {"error_norm": error, "tolerance": tolerance, "theirs": beside, "attention": own}


def engine_logits(
    loaded: LoadedModel, prompts: list[list[int]], device: str, backend: str
) -> list[torch.Tensor]:
    """Logits at every position of each prompt through pages, in a pool full of NaN."""
    kernels = load(torch.device(device).type, backend)
    longest = max(map(len, prompts))
    pages_each = -(-longest // _PAGE)
    pool = KVPool(
        loaded.shape, len(prompts) * pages_each, _PAGE,
        dtype=loaded.model.dtype, device=device, poison=True,
    )  # fmt: skip
    runner = ModelRunner(loaded, pool, kernels)
    batches = BatchBuilder(len(prompts), longest, _PAGE)
    order = random.Random(3).sample(range(pool.num_pages), pool.num_pages)
    batches.update(
        TableUpdate(seq, 0, tuple(order[seq * pages_each : (seq + 1) * pages_each]))
        for seq in range(len(prompts))
    )
    rows: list[list[torch.Tensor]] = [[] for _ in prompts]
    draw = (SamplingParams(),)
    for step in zip_longest(*(_cuts(len(prompt)) for prompt in prompts)):
        chunks = [
            Chunk(seq, begin, tuple(prompts[seq][begin:end]), draw, num_drafts=end - begin - 1)
            for seq, (begin, end) in ((seq, cut) for seq, cut in enumerate(step) if cut)
        ]
        logits = runner.forward(batches.build(tuple(chunks))).clone()
        sizes = [len(chunk.token_ids) for chunk in chunks]
        for chunk, part in zip(chunks, logits.split(sizes), strict=True):
            rows[chunk.seq_id].append(part)
    return [torch.cat(parts) for parts in rows]


def _cuts(length: int) -> list[tuple[int, int]]:
    """Two chunks, then single tokens, a third of the prompt at most: a prefill, a continued one,
    decodes. A shorter prompt decodes while a longer one does, and ends sooner."""
    single = min(_MOST_SINGLE, max(1, length // 3))
    half = (length - single) // 2
    chunks = [(0, half), (half, length - single)]
    return [*chunks, *((at, at + 1) for at in range(length - single, length))]


def check_tokens(given: Task, log: RowLog, device: str) -> None:
    """Greedy outputs of one workload: equal to the first setting's, position by position. That one
    is served again for what others are not done yet."""
    first, *others = settings(given.dry)
    left = [each for each in others if not log.is_done(_token_case(each))]
    if not left and log.is_done(_token_case(first)):
        return
    model = model_preset("tiny")
    if given.dry:
        model = replace(model, config={**model.config, "num_hidden_layers": 1})
    work = _workload(_DRY_OUTPUTS if given.dry else _OUTPUTS)
    config = RunConfig(
        model=model,
        kv=KVConfig(page_size=_PAGE, pool_tokens=_POOL_TOKENS),
        device=DeviceConfig(kind="cuda" if device == "cuda" else "cpu"),
        attention=AttentionConfig(backend="triton"),
    )
    warm = TorchDevice(config.model, config.device)
    expected: Outputs = {}
    for setting in (first, *left):
        changed = replace(
            config, allocator=setting.allocator, engine=EngineConfig(**setting.engine)
        )
        case = _token_case(setting)
        if given.budget.left_s < 0:
            if not log.is_done(case):
                log.add(case, "cut")
            continue
        guarded(log, case, _tokens, log, case, changed, work, warm, expected)


def _token_case(setting: Setting) -> str:
    return f"greedy tokens, {setting.name}"


def _tokens(
    log: RowLog,
    case: str,
    config: RunConfig,
    work: Workload,
    device: TorchDevice,
    expected: Outputs,
) -> None:
    """Serve the workload; `expected` is filled by the first setting."""
    records = KeptRecords()
    run = prepare(config, work, _POOL_TOKENS // _PAGE, device, records)
    try:
        run.run()
    finally:
        run.executor.close()
    found = {r.request_id: (r.chosen_ids, r.margins) for r in records.requests}
    if not expected:
        expected.update(found)
    difference = _difference(expected, found)
    positions = sum(len(tokens) for tokens, _ in found.values())
    log.add(case, "failed" if difference else "ok", positions=positions, error=difference)
    print(f"{case}: {difference or f'{positions} positions equal'}", flush=True)


def settings(dry: bool) -> Iterator[Setting]:
    """Strategies with everything on; then the first of them with each fast path off, and on a GPU
    with its forward pass compiled."""
    base = {"max_num_seqs": 8, "token_budget": 64}
    paged = AllocatorConfig("paged")
    yield Setting("paged", paged, base)
    yield Setting("paged_cow", AllocatorConfig("paged_cow"), base)
    yield Setting("paged_prefix", AllocatorConfig("paged_prefix"), base)
    contiguous = AllocatorConfig("contiguous", "max", options={"fit": "buddy"})
    yield Setting("contiguous", contiguous, base)
    for switch in _SWITCHES:
        yield Setting(f"paged, {switch}=false", paged, {**base, switch: False})
    if not dry:
        yield Setting("paged, compile=true", paged, {**base, "compile": True})


def _difference(expected: Outputs, found: Outputs) -> str:
    """Where a choice differs by more than rounding; empty where none does. From the first
    difference on a request has other inputs, so what follows it says nothing."""
    if expected.keys() != found.keys():
        return f"{len(found)} requests finished where {len(expected)} should have"
    for request, (tokens, margins) in found.items():
        others, beside = expected[request]
        positions = enumerate(zip(tokens, others, margins, beside, strict=True))
        parted = next((each for each in positions if each[1][0] != each[1][1]), None)
        if parted is not None:
            position, (ours, theirs, margin, their_margin) = parted
            if max(margin, their_margin) > MARGIN_LIMIT:
                return f"request {request}, position {position}: {ours}, not {theirs}"
    return ""


def _workload(outputs: Sequence[int]) -> Workload:
    """A prompt for each of these output lengths, which are forced."""
    prompts = _prompts(512, (5, 9, 17, 3)[: len(outputs)])
    requests = tuple(
        Request(index, 0.0, tuple(prompt), length, forced_len=length)
        for index, (prompt, length) in enumerate(zip(prompts, outputs, strict=True))
    )
    return Workload("checks", requests, "")


def _prompts(vocab: int, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, vocab) for _ in range(n)] for n in lengths]


if __name__ == "__main__":
    sys.exit(main())

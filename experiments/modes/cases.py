"""The ways of decoding that must not change a token: requests, engine, and what proves that a
run really went that way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.config import EngineConfig
from harness.engine.device.model_shape import ModelConfig, model_preset
from harness.engine.device.models import load_model
from harness.engine.request import Request, SamplingParams
from harness.engine.scheduling.beam_search import BeamParams
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.runs.build import PreparedRun

PAGE_SIZE = 4
"""Small, so that short sequences take many pages and end inside one."""

FAMILIES = {
    "llama": model_preset("tiny"),
    "gpt2": ModelConfig(
        name="gpt2",
        family="gpt2",
        config={
            "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 512,
            "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False,
        },
        initializer_range=0.2,
    ),
    "opt": ModelConfig(
        name="opt",
        family="opt",
        config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128,
            "vocab_size": 256, "max_position_embeddings": 512, "word_embed_proj_dim": 64,
            "tie_word_embeddings": False,
        },
        initializer_range=0.2,
    ),
    "gemma2": ModelConfig(
        name="gemma2",
        family="gemma2",
        config={
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
            "vocab_size": 256, "max_position_embeddings": 512, "sliding_window": 7,
            "query_pre_attn_scalar": 16, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None, "tie_word_embeddings": False,
        },
        initializer_range=0.2,
    ),
}  # fmt: skip
"""Random weights whose greedy output does not fall into a cycle, where a wrong page might change
nothing: wide ones, and no tied embeddings, with which a token is its own likeliest successor."""

GROWING = ("paged", "paged_cow", "paged_prefix")
"""Strategies that take a page when a sequence needs it, so that memory can run out on them."""

ROOMY_TOKENS = 2048
TIGHT_TOKENS = 256
"""Little more than the largest request of `_mixed` needs."""

SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=7)
PREFIX_LEN = 13
_OWN_LENS = (5, 17, 1, 26, 9, 12, 21, 7)
_FIRST_ID, _END_ID = 3, 250
"""Prompt tokens: of any family's vocabulary, and none that is special."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A way of decoding `requests`.

    count: how often it happened in a finished run, and `unit` what it counts. A run in which it
    did not is an error, unless the strategy may go without: then it is `otherwise`. Those of
    `required` may not; where `otherwise` is empty, nobody may.
    """

    name: str
    requests: tuple[Request, ...]
    count: Callable[[PreparedRun], int]
    unit: str
    engine: EngineConfig
    pool_tokens: int = ROOMY_TOKENS
    otherwise: str = ""
    required: tuple[str, ...] = ()

    def must_happen(self, allocator: str) -> bool:
        """Whether a run under the allocator of that name proves nothing without it."""
        return not self.otherwise or allocator in self.required


def modes(config: ModelConfig, near: Path) -> tuple[Mode, ...]:
    """All of them for one model. near: a draft model for it, as from `save_near_draft`."""
    greedy = requests_for(_prompts())
    drafted = SpeculationConfig("draft_model", num_tokens=3, draft=str(near))
    looked_up = SpeculationConfig("ngram", num_tokens=3)
    engine = EngineConfig(token_budget=128, max_num_seqs=32, watermark=0.0)
    windowed = "sliding_window" in config.config
    found = [
        Mode("greedy", greedy, _batched, "requests at one time", engine),
        Mode("n=4 samples", requests_for(_prompts(), **_SAMPLES), _branches, "branches", engine),
        Mode("beam 4", requests_for(_prompts(), **_BEAMS), _branches, "branches", engine),
        Mode(
            "speculative, draft model", greedy, _accepted, "drafts accepted",
            replace(engine, speculation=drafted),
        ),
        Mode(
            "speculative, n-gram", requests_for(_prompts(), output_len=48), _accepted,
            "drafts accepted", replace(engine, speculation=looked_up),
        ),
        Mode(
            "chunked prefill", requests_for(_prompts(longer=50)), _chunked, "split prompts",
            EngineConfig(token_budget=16, max_num_seqs=12),
        ),
        Mode(
            "preempted by swap", _mixed(), _swapped, "swaps",
            replace(engine, preemption="swap"), TIGHT_TOKENS,
            otherwise="never swapped", required=GROWING,
        ),
        Mode(
            "preempted by recompute", _mixed(), _recomputed, "recomputations",
            replace(engine, preemption="recompute"), TIGHT_TOKENS,
            otherwise="never preempted", required=GROWING,
        ),
        Mode(
            "shared prefix", requests_for(_prompts(), shares=True), _cached, "tokens reused",
            replace(engine, max_num_seqs=3),
            otherwise="shares no prefix",
            required=("paged_prefix",) if windowed else ("paged_cow", "paged_prefix"),
        ),
    ]  # fmt: skip
    if windowed:
        found.append(
            Mode(
                "sliding window", requests_for(_prompts(), output_len=30), _windowed,
                "groups of layers", engine, otherwise="one table for all layers",
                required=GROWING,
            )
        )  # fmt: skip
    return tuple(found)


def requests_for(
    prompts: tuple[tuple[int, ...], ...],
    *,
    output_len: int | None = None,
    shares: bool = False,
    **fields: Any,
) -> tuple[Request, ...]:
    """A request a prompt, all at once, whose bounds are above their lengths. shares: the odd
    ones declare the prefix that `_prompts` gives them."""
    requests = []
    for index, prompt in enumerate(prompts):
        length = output_len or 8 + 4 * (index % 3)
        declares = shares and index % 2 == 1
        requests.append(
            Request(
                index,
                0.0,
                prompt,
                max_tokens=length + 3,
                forced_len=length,
                shared_prefix_id=0 if declares else -1,
                shared_prefix_len=PREFIX_LEN if declares else 0,
                **fields,
            )
        )
    return tuple(requests)


def save_near_draft(config: ModelConfig, folder: Path) -> None:
    """A model whose weights are a little off those of `config`: often right, not always."""
    near = load_model(config).model
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=noise)
    near.save_pretrained(folder)


_SAMPLES: dict[str, Any] = {"num_samples": 4, "sampling": SAMPLED}
_BEAMS: dict[str, Any] = {"beam": BeamParams(4)}


def _prompts(longer: int = 0) -> tuple[tuple[int, ...], ...]:
    """One a request, each `longer` tokens longer; the odd ones begin with the same tokens."""
    rng = random.Random(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(_FIRST_ID, _END_ID) for _ in range(count))

    shared = tokens(PREFIX_LEN)
    own = [tokens(length + longer) for length in _OWN_LENS]
    return tuple(shared + ids if k % 2 else ids for k, ids in enumerate(own))


def _mixed() -> tuple[Request, ...]:
    """Greedy requests, samples and beams in turn."""
    kinds = [requests_for(_prompts(), output_len=24, **fields) for fields in ({}, _SAMPLES, _BEAMS)]
    return tuple(kinds[k % 3][k] for k in range(len(_OWN_LENS)))


def _batched(run: PreparedRun) -> int:
    most = max(step.num_running for step in run.recorder.sink.steps)
    return most if most > 1 else 0


def _branches(run: PreparedRun) -> int:
    """Distinct outputs beyond a request's first."""
    count = 0
    for record in run.recorder.sink.requests:
        ids = iter(record.chosen_ids)
        count += len({tuple(next(ids) for _ in range(n)) for n in record.sequence_lens}) - 1
    return count


def _accepted(run: PreparedRun) -> int:
    """Right drafts, where there were wrong ones to be taken back as well."""
    drafted = sum(record.num_drafted_tokens for record in run.recorder.sink.requests)
    accepted = sum(record.num_accepted_tokens for record in run.recorder.sink.requests)
    return accepted if accepted < drafted else 0


def _chunked(run: PreparedRun) -> int:
    """Prompts that no step of this run was long enough for."""
    largest = max(step.num_prefill_tokens for step in run.recorder.sink.steps)
    return sum(
        r.num_prompt_tokens - r.num_cached_tokens > largest for r in run.recorder.sink.requests
    )


def _swapped(run: PreparedRun) -> int:
    return sum(record.num_swaps for record in run.recorder.sink.requests)


def _recomputed(run: PreparedRun) -> int:
    return sum(record.num_preemptions - record.num_swaps for record in run.recorder.sink.requests)


def _cached(run: PreparedRun) -> int:
    return sum(record.num_cached_tokens for record in run.recorder.sink.requests)


def _windowed(run: PreparedRun) -> int:
    """Groups of layers with pages of their own, where those of a window gave theirs back: what
    they still hold behind it is less than a page a sequence."""
    requests = len(run.recorder.sink.requests)
    held = max(entry.dead_window for entry in run.recorder.sink.entries)
    gives_back = run.num_layer_groups > 1 and held < PAGE_SIZE * requests
    return run.num_layer_groups if gives_back else 0

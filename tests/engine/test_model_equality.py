"""Greedy tokens of the torch executor are those of transformers' own `generate`."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from model_driver import drive

from harness.engine.device.model_shape import ModelConfig, model_preset
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.torch_executor import TorchExecutor

VOCAB = 512
NUM_OUTPUT = 24
_LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 64,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 9},
    "gemma2": {
        **_LLAMA_LIKE,
        "sliding_window": 11,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 16,
    },
    "gpt2": _GPT2,
    "opt": _OPT,
}


def _prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (1, 5, 17, 30)]


def _config(family: str) -> ModelConfig:
    return ModelConfig(
        name=f"tiny_{family}",
        family=family,
        config=FAMILIES[family],
        initializer_range=0.4 if family in ("gpt2", "opt") else 0.2,
        weight_seed=6,  # with others outputs of some family end in a cycle
    )


@cache
def _loaded(family: str) -> LoadedModel:
    loaded = load_model(_config(family))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # biases and norms start at 0 and 1, where their misuse would not show
        for parameter in loaded.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return loaded


@cache
def _generated(family: str) -> list[list[int]]:
    model = _loaded(family).model
    model.set_attn_implementation("eager")
    outputs = []
    for prompt in _prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            full = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_OUTPUT,
                min_new_tokens=NUM_OUTPUT,
                do_sample=False,
                eos_token_id=VOCAB + 1,
                pad_token_id=0,
            )
        outputs.append(full[0, len(prompt) :].tolist())
    model.set_attn_implementation("kvarena")
    return outputs


def _executor(family: str, page_size: int, **options: object) -> TorchExecutor:
    return TorchExecutor(
        _loaded(family),
        num_pages=400 // page_size,
        page_size=page_size,
        max_seqs=4,
        max_len=64,
        poison=True,
        **options,
    )


def _drive(executor: TorchExecutor, page_size: int, **options: object) -> list[list[int]]:
    return drive(
        executor,
        _prompts(),
        NUM_OUTPUT,
        num_pages=400 // page_size,
        page_size=page_size,
        **options,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_greedy_tokens_equal_generate(family: str, page_size: int) -> None:
    expected = _generated(family)
    assert all(len(set(output)) > NUM_OUTPUT // 2 for output in expected)
    assert _drive(_executor(family, page_size), page_size) == expected


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("fused", [False, True])
def test_every_path_gives_the_tokens_of_generate(kernels: str, fused: bool) -> None:
    executor = _executor("llama", 4, kernels=kernels, fused=fused)
    assert executor.fused == fused
    assert _drive(executor, 4) == _generated("llama")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_contiguous_attention_equals_generate(family: str, fused: bool) -> None:
    executor = _executor(family, 4, attention="contiguous", fused=fused)
    assert _drive(executor, 4, shuffle_seed=None) == _generated(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_wrong_page_shows(family: str) -> None:
    outputs = _drive(_executor(family, 4), 4, chunk_size=64, wrong_page_at=4)
    windowed = family == "mistral"  # by then the window may have passed the first page
    assert windowed or outputs[0] != _generated(family)[0]


def test_a_wrong_page_inside_the_window_shows() -> None:
    outputs = _drive(_executor("mistral", 4), 4, chunk_size=64, wrong_page_at=2)
    assert outputs[0] != _generated("mistral")[0]


def test_presets_do_not_cycle() -> None:
    config = model_preset("tiny")
    executor = TorchExecutor(
        load_model(config), num_pages=40, page_size=16, max_seqs=2, max_len=320
    )
    (output,) = drive(executor, [[5, 6, 7]], 256, num_pages=40, page_size=16)
    assert len(set(output)) > 128

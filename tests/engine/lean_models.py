"""Tiny models with a lean forward pass, and batches for it, without an executor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.engine.device.attention import AttentionStep
from harness.engine.device.lean.build import LeanModel
from harness.engine.device.lean.decoder import LeanDecoder
from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.models import LoadedModel, load_model
from kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 9},
    "llama yarn": {"rope_parameters": YARN},
}


def operations_of(kernels: str, dtype: str = "float32") -> str:
    """The name of the operations that go with them."""
    return kernels if kernels == "triton" or (kernels, dtype) == ("cpu", "float32") else "torch"


@cache
def loaded(family: str, dtype: str = "float32") -> LoadedModel:
    config = ModelConfig(
        name=family,
        family=family.split()[0],
        config={**SIZES, **FAMILIES[family]},
        initializer_range=0.2,
        dtype=dtype,
    )
    model = load_model(config, DEVICE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # biases and norms start at 0 and 1, where their misuse would not show
        for parameter in model.model.parameters():
            if parameter.dim() == 1:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter))
    return model


def lean(family: str, dtype: str = "float32") -> LeanModel:
    found = loaded(family, dtype).lean
    assert found is not None
    return found


def decoder(family: str, kernels: str, dtype: str = "float32") -> LeanDecoder:
    found = lean(family, dtype).decoder(kernels)
    assert found is not None and found.operations.name == operations_of(kernels, dtype)
    return found


def step_of(num_tokens: list[int], dtype: torch.dtype, page_size: int = 4) -> AttentionStep:
    """New sequences of so many tokens, on pages of a poisoned pool; reference attention."""
    lens = torch.tensor(num_tokens, dtype=torch.int32)
    pages_each = [-(-n // page_size) for n in num_tokens]
    table = torch.zeros(len(num_tokens), max(pages_each), dtype=torch.int32)
    slots, first = [], 0
    for row, (count, pages) in enumerate(zip(num_tokens, pages_each, strict=True)):
        table[row, :pages] = torch.arange(first, first + pages)
        slots.append(first * page_size + torch.arange(count))
        first += pages
    size = (first * page_size, SIZES["num_key_value_heads"], SIZES["head_dim"])
    caches = [
        (torch.full(size, torch.nan, dtype=dtype), torch.full(size, torch.nan, dtype=dtype))
        for _ in range(2)
    ]
    bounds = torch.tensor([0, *num_tokens], dtype=torch.int32).cumsum(0).int()
    return AttentionStep(
        reference,  # type: ignore[arg-type]
        [(key.to(DEVICE), value.to(DEVICE)) for key, value in caches],
        (0, 0),
        page_size,
        bounds.to(DEVICE),
        lens.to(DEVICE),
        (torch.cat(slots).to(DEVICE),),
        (table.to(DEVICE),),
    )


def batch_of(num_tokens: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions and the last row of each sequence."""
    generator = torch.Generator().manual_seed(sum(num_tokens))
    ids = torch.randint(VOCAB, (sum(num_tokens),), generator=generator)
    positions = torch.cat([torch.arange(n) for n in num_tokens])
    rows = torch.tensor(num_tokens).cumsum(0) - 1
    return ids.to(DEVICE), positions.to(DEVICE), rows.to(DEVICE)

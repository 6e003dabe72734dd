"""The model's own forward pass through torch.compile gives the tokens it gives without."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from model_driver import drive

from harness.engine.device.capture import Rehearsal
from harness.engine.device.compiled import CompiledModel, NotCompiledError, padded_seqs
from harness.engine.device.model_shape import LayerGroup, ModelConfig
from harness.engine.device.models import load_model
from harness.engine.device.torch_executor import TorchExecutor

VOCAB, PAGE_SIZE, NUM_PAGES = 128, 4, 100
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def prompts() -> list[list[int]]:
    rng = random.Random(2)
    return [[rng.randrange(VOCAB) for _ in range(n)] for n in (1, 9, 4)]


def num_compiled() -> int:
    """Traces that were compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_are_those_without_and_nothing_compiles_later(family: str) -> None:
    window = {"sliding_window": 7} if family == "gemma2" else {}
    loaded = load_model(ModelConfig("tiny", family, SHAPE | window, initializer_range=0.3))
    torch._dynamo.reset()
    compiled = CompiledModel(loaded.model)

    def tokens(**options: object) -> list[list[int]]:
        executor = TorchExecutor(
            loaded,
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            max_seqs=3,
            max_len=64,
            poison=True,
            **options,
        )
        order = None if options.get("attention") == "contiguous" else 0
        return drive(
            executor, prompts(), 10, num_pages=NUM_PAGES, page_size=PAGE_SIZE, shuffle_seed=order
        )

    expected, before = tokens(fused=False), num_compiled()
    assert tokens(compiled=compiled) == expected
    assert tokens(compiled=compiled) == expected  # another pool, the same code
    assert num_compiled() == before + 1
    assert tokens(compiled=compiled, capture=Rehearsal()) == expected
    assert tokens(compiled=compiled, attention="contiguous") == expected


class Breaks(torch.nn.Module):
    """Looks at values in its forward pass."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        if input_ids.sum().item() > 10**9:
            return input_ids
        raise ValueError("never reached while it is traced")


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    loaded = load_model(ModelConfig("tiny", "llama", SHAPE))
    with pytest.raises(NotCompiledError, match=r"Breaks cannot be traced.*engine\.compile=false"):
        TorchExecutor(
            loaded,
            num_pages=4,
            page_size=4,
            max_seqs=1,
            max_len=16,
            compiled=CompiledModel(Breaks()),
        )


def test_layers_know_their_place_in_the_pool() -> None:
    loaded = load_model(ModelConfig("tiny", "llama", SHAPE))
    groups = (LayerGroup(None, (1,)), LayerGroup(7, (0,)))
    executor = TorchExecutor(
        loaded, num_pages=8, page_size=4, max_seqs=1, max_len=16, groups=groups
    )
    assert executor.pool.places == ((1, 0), (0, 0))
    assert executor.pool.caches[0][0].data_ptr() == executor.pool.storage[0, 0].data_ptr()


@pytest.mark.parametrize("num_tokens", range(1, 6))
def test_padding_does_not_make_a_prompt_look_like_decodes(num_tokens: int) -> None:
    """The kernels take as many tokens as sequences for one each."""
    for num_seqs in range(1, num_tokens + 1):
        padded = padded_seqs(num_tokens, num_seqs)
        assert padded >= max(2, num_seqs)
        assert (max(2, num_tokens) == padded) == (num_tokens == num_seqs)

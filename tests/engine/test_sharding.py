"""Slices of a model compute together what the whole model computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from thread_ranks import ThreadRanks, on_all_ranks

from harness.engine.device.attention import ATTENTION_NAME, AttentionStep
from harness.engine.device.lean.build import build
from harness.engine.device.model_shape import ModelShape
from harness.engine.device.models import shape_of
from harness.engine.device.parallel.sharding import NotSplitError, Splitter

_LLAMA = {
    "vocab_size": 131,  # not a multiple of anything
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_OPT = {
    "vocab_size": 131,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 64,
}
_GPT_NEOX = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA, "tie_word_embeddings": False}),
    "llama_with_biases": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_LLAMA, "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        {**_LLAMA, "query_pre_attn_scalar": 8, "final_logit_softcapping": 10.0},
    ),
    "gpt_neox": ("gpt_neox", _GPT_NEOX),
    "opt": ("opt", _OPT),
}
IDS = torch.tensor([3, 130, 0, 65, 66, 17, 44])


def _whole(family: str) -> Any:
    model_type, sizes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    for name in ("initializer_range", "init_std"):
        if hasattr(config, name):
            setattr(config, name, 0.2)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def _shape(model: Any) -> ModelShape:
    return shape_of(model, model.config, 4)


def _logits(model: Any) -> torch.Tensor:
    positions = torch.arange(len(IDS))[None]
    step = AttentionStep.probe()
    return model(input_ids=IDS[None], position_ids=positions, use_cache=False, kv_step=step).logits[
        0
    ]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole(family: str, size: int) -> None:
    whole = _whole(family)
    expected = _logits(whole)
    slices = [copy.deepcopy(whole) for _ in range(size)]

    def work(ranks: ThreadRanks) -> torch.Tensor:
        Splitter(slices[ranks.rank], _shape(whole), ranks).split_all()
        return _logits(slices[ranks.rank])

    for logits in on_all_ranks(size, work):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    own = [sum(p.numel() for p in model.parameters()) for model in slices]
    assert max(own) < 0.75 * whole.num_parameters()


@pytest.mark.parametrize("family", ["llama", "llama_with_biases", "llama_tied", "qwen3"])
def test_the_lean_forward_pass_is_split_as_well(family: str) -> None:
    """`build` proves it against the model's own forward pass on every rank."""
    whole = _whole(family)
    slices = [copy.deepcopy(whole) for _ in range(2)]

    def work(ranks: ThreadRanks) -> bool:
        Splitter(slices[ranks.rank], _shape(whole), ranks).split_all()
        return build(slices[ranks.rank], ranks=ranks) is not None

    assert on_all_ranks(2, work) == [True, True]


def test_fewer_kv_heads_than_ranks_are_copied() -> None:
    whole = _whole("llama")
    slices = [copy.deepcopy(whole) for _ in range(4)]
    on_all_ranks(4, lambda ranks: Splitter(slices[ranks.rank], _shape(whole), ranks).split_all())
    keys = [model.model.layers[0].self_attn.k_proj.weight for model in slices]
    heads = whole.model.layers[0].self_attn.k_proj.weight.split(8)
    for rank, weight in enumerate(keys):
        assert torch.equal(weight, heads[rank // 2])


def test_a_tied_output_layer_shares_its_slice() -> None:
    whole = _whole("llama_tied")
    slices = [copy.deepcopy(whole) for _ in range(2)]
    on_all_ranks(2, lambda ranks: Splitter(slices[ranks.rank], _shape(whole), ranks).split_all())
    for model in slices:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight.shape == (66, 64)


def test_an_architecture_without_a_plan_is_refused() -> None:
    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=64
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotSplitError, match="GPT2LMHeadModel has no plan"):
        on_all_ranks(2, lambda ranks: Splitter(model, _shape(model), ranks).split_all())


@pytest.mark.parametrize(("family", "style"), [("olmo2", "gather"), ("mixtral", "experts")])
def test_a_plan_that_is_not_understood_is_refused(family: str, style: str) -> None:
    sizes = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotSplitError, match=style):
        on_all_ranks(2, lambda ranks: Splitter(model, _shape(model), ranks).split_all())


def test_columns_that_do_not_divide_are_refused() -> None:
    config = transformers.AutoConfig.for_model(
        "llama",
        **{
            **_LLAMA,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "hidden_size": 48,
            "intermediate_size": 97,
        },
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotSplitError, match="97 columns, which 3 ranks"):
        Splitter(model, _shape(model), ThreadRanks(0, 3, meeting=None)).split_all()


def test_heads_of_a_rank() -> None:
    shape = _shape(_whole("llama"))
    assert [shape.of_rank(n).num_q_heads for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert [shape.of_rank(n).num_kv_heads for n in (1, 2, 4, 8)] == [2, 1, 1, 1]
    with pytest.raises(ValueError, match="choose one of 1, 2, 4, 8"):
        shape.of_rank(3)

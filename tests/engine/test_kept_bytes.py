"""What a simulated run takes a token to cost is what the model's own cache keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness.compose import compose_run, hydra_session
from harness.config import ConfigError
from harness.engine.device.model_shape import ModelConfig, ModelShape, model_shape
from harness.engine.device.models import UnsupportedModelError, load_model
from harness.runs.pool_size import estimated_beside_pool
from harness.runs.preflight import Preflight

_TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_MLA = {
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
_MANY_HEADS = {k: v for k, v in _TINY.items() if k != "head_dim"}
_DEEPSEEK = {**_MANY_HEADS, **_MLA, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_JAMBA = {**_TINY, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2,
          "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False}  # fmt: skip
_GEMMA3N = {
    **_TINY,
    "intermediate_size": [48] * 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 16,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0] * 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {**_TINY, "sliding_window": 16},
    "falcon": {**_MANY_HEADS, "multi_query": True, "new_decoder_architecture": False},
    "gpt_bigcode": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "deepseek_v3": {**_DEEPSEEK, "num_experts_per_tok": 1, "first_k_dense_replace": 3},
    "minicpm3": {**_MANY_HEADS, **_MLA},
    "jamba": _JAMBA,
    "qwen3_next": {**_TINY, **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": {**_TINY, "global_head_dim": 16, "num_global_key_value_heads": 1,
                    "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8,
                    "layer_types": ["sliding_attention", "full_attention"] * 2},
}  # fmt: skip


def _config(family: str, config: dict[str, Any], dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name=family, family=family, config=config, dtype=dtype)


def _cached_bytes(family: str, num_tokens: int) -> int:
    """What the cache of a real model holds after so many tokens."""
    hf_config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.arange(num_tokens)[None], use_cache=True).past_key_values
    return sum(t.numel() * t.element_size() for each in cache.layers for t in _tensors(vars(each)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_models_own_cache(family: str) -> None:
    shape = model_shape(_config(family, FAMILIES[family]))
    for num_tokens in (4, 11):
        expected = num_tokens * shape.kv_bytes_per_token + shape.state_bytes
        assert _cached_bytes(family, num_tokens) == expected


_DEEPSEEK_V3 = {
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "n_routed_experts": 256, "first_k_dense_replace": 3, "vocab_size": 129280,
}  # fmt: skip


def test_published_sizes() -> None:
    deepseek = model_shape(_config("deepseek_v3", _DEEPSEEK_V3, "bfloat16"))
    assert deepseek.kv_bytes_per_token == (512 + 64) * 2 * 61  # DeepSeek-V2, section 2.1.4
    assert deepseek.num_parameters == pytest.approx(671e9, rel=0.001)
    falcon = model_shape(_config("falcon", {"num_hidden_layers": 32}, "bfloat16"))
    assert falcon.kv_bytes_per_token == 2 * 64 * 2 * 32  # of Falcon 7B: one head of 64
    jamba = model_shape(_config("jamba", {}, "bfloat16"))
    assert jamba.kv_layers == (4, 12, 20, 28) and jamba.state_bytes > 0  # one layer in eight


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("deepseek_v4", {"num_hidden_layers": 4}, "DeepseekV4.*not the same of every token"),
        ("mamba", {"num_hidden_layers": 2}, "Mamba.*only .* bytes of state a sequence"),
        ("bert", {"num_hidden_layers": 2}, "Bert.*keeps no keys and values"),
        ("longcat_flash", {"num_layers": 2}, "LongcatFlash.*does not show what its cache keeps"),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(
    family: str, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        model_shape(_config(family, config))


@pytest.mark.parametrize("family", ["deepseek_v3", "jamba", "gemma3n_text", "gemma4_text"])
def test_the_torch_engine_refuses_what_it_would_keep_otherwise(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"keeps .* elements a token in . of 4 layers"):
        load_model(_config(family, FAMILIES[family]))


def _check(folder: Path, *overrides: str) -> tuple[ModelShape, int]:
    """The planned shape, and the bytes of states beside its pool."""
    transformers.AutoConfig.for_model("jamba", **_JAMBA).save_pretrained(folder)
    with hydra_session():
        config = compose_run(["model=hub", f"model.path={folder}", *overrides])
    Preflight().check(config)
    shape = model_shape(config.model)
    return shape, estimated_beside_pool(config, shape).state_bytes


def test_states_are_counted_or_refused(tmp_path: Path) -> None:
    memory = ["executor=simulated", "device.imagined_memory_gib=1", "kv.memory_fraction=0.5"]
    shape, state_bytes = _check(tmp_path, *memory, "engine.max_num_seqs=7")
    assert state_bytes == 7 * shape.state_bytes > 0
    with pytest.raises(
        ConfigError, match="bytes of state a sequence, which a pool given in tokens"
    ):
        _check(tmp_path, "executor=simulated", "kv.pool_tokens=1024")
    with pytest.raises(ConfigError, match=r"elements a token in 2 of 4 layers.*executor=simulated"):
        _check(tmp_path, "executor=torch", "device=cpu")

"""A model runs only where its logits on pages are those of its own eager attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_driver import drive
from transformers import AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.engine.device import models
from harness.engine.device.attention import ATTENTION_NAME, kv_attention
from harness.engine.device.attention_check import check
from harness.engine.device.cache_probe import decoder_layers
from harness.engine.device.model_shape import ModelConfig, model_preset
from harness.engine.device.models import UnsupportedModelError, load_model
from harness.engine.device.module_weights import empty_decoder, quiet
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.device.twin import give_weights, num_layers_of_all_kinds, twin_config

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def _config(family: str, **config: Any) -> ModelConfig:
    return ModelConfig(name=family, family=family, config={**_SIZES, **config})


_REFUSED: dict[str, dict[str, Any]] = {
    "llama4_text": {"attention_chunk_size": 64, "intermediate_size_mlp": 48,
                    "num_local_experts": 2},
    "diffllama": {},
}  # fmt: skip


@pytest.mark.parametrize("family", _REFUSED)
def test_another_attention_is_refused_by_name(family: str) -> None:
    """Llama 4's chunks of 64 tokens are only in its mask: nothing shows within 64 tokens."""
    with pytest.raises(UnsupportedModelError, match=r"ForCausalLM (attends in another|.*layers)"):
        load_model(_config(family, **_REFUSED[family]))


@pytest.fixture
def fresh() -> Iterator[None]:
    """No verdict is taken from another test, or left to one."""
    check.cache_clear()
    yield
    AttentionInterface.register(ATTENTION_NAME, kv_attention)
    check.cache_clear()


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Any]:
    def attention(*args: Any, **kwargs: Any) -> Any:
        for name, change in changes.items():
            kwargs[name] = change(kwargs.get(name))
        return kv_attention(*args, **kwargs)

    return attention


_FAULTS = {
    "no window": ("mistral", _changed(sliding_window=lambda window: None)),
    "a window of one more": ("mistral", _changed(sliding_window=lambda window: window + 1)),
    "an additional window": ("llama", _changed(sliding_window=lambda window: 30)),
    "no softcap": ("gemma2", _changed(softcap=lambda softcap: None)),
    "another scale": ("llama", _changed(scaling=lambda scaling: 0.9 * scaling)),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_planted_wrong_attention_is_refused(fault: str, fresh: None) -> None:
    family, attention = _FAULTS[fault]
    config = _config(family, **({} if family == "llama" else {"sliding_window": 64}))
    load_model(config)
    check.cache_clear()
    AttentionInterface.register(ATTENTION_NAME, attention)
    with pytest.raises(UnsupportedModelError, match=r"attends in another way.* at position \d+ by"):
        load_model(config)


def test_pages_that_are_still_read_must_not_be_released(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_layer_windows", lambda text: (3,) * text.num_hidden_layers)
    with pytest.raises(UnsupportedModelError, match=r"attends in another way.* by nan"):
        load_model(_config("llama"))


def test_a_lean_pass_that_is_not_the_same_is_not_chosen(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own probe looks at queries, keys and values, not at what they are read with."""
    assert load_model(model_preset("tiny")).lean is not None
    check.cache_clear()
    build = models.build
    from harness.engine.device import attention_check

    def faulty(model: Any, **options: Any) -> Any:
        lean = build(model, **options)
        assert lean is not None
        for layer in lean._weights.layers:
            object.__setattr__(layer, "scale", 0.9 * layer.scale)
        return lean

    monkeypatch.setattr(attention_check, "build", faulty)
    assert load_model(model_preset("tiny")).lean is None


def test_sequences_end_where_angles_begin_to_depend_on_the_batch() -> None:
    """A long sequence would turn the keys of all others in its step by other angles."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    original = {"original_max_position_embeddings": 64}  # where Phi 3 says it
    loaded = load_model(_config("phi3", rope_parameters=rope, pad_token_id=0, **original))
    assert loaded.shape.max_positions == 64 < _SIZES["max_position_embeddings"]


def _tiny(family: str) -> Any:
    """A twin of a family's own config, with weights, or None where transformers builds none."""
    try:
        hf_config = transformers.AutoConfig.for_model(family)
        num_layers = num_layers_of_all_kinds(
            decoder_layers(empty_decoder(hf_config, torch.float32))
        )
        twin = twin_config(hf_config, num_layers)
        model = transformers.AutoModelForCausalLM.from_config(twin, dtype=torch.float32).eval()
        give_weights(model)
        model(input_ids=torch.arange(9)[None])
    except Exception:  # of defaults that do not fit each other, or of missing packages
        return None
    return model


_NUM_OUTPUT = 8


def _generated(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(_NUM_OUTPUT):
            chosen = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat((ids, chosen[None, None]), dim=1)
    return ids[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_decoder_of_transformers_is_equal_or_refused(family: str, tmp_path: Path) -> None:
    """Tokens of those that run are the ones that the model gives by itself, computed anew."""
    with quiet():
        model = _tiny(family)
        if model is None:
            pytest.skip(f"transformers builds no {family} from its own defaults, made small")
        model.generation_config.eos_token_id = None
        model.save_pretrained(tmp_path)
    try:
        loaded = load_model(ModelConfig(name=family, path=str(tmp_path), dtype="float32"))
    except ValueError as refusal:
        assert type(model).__name__ in str(refusal) and "\n" not in str(refusal)
        return
    vocabulary = model.config.get_text_config().vocab_size
    prompts = [[(7 + 37 * i) % vocabulary for i in range(n)] for n in (25, 13)]
    model.set_attn_implementation("eager")
    expected = [_generated(model, prompt) for prompt in prompts]
    executor = TorchExecutor(loaded, num_pages=40, page_size=4, max_seqs=2, max_len=64, poison=True)
    assert drive(executor, prompts, _NUM_OUTPUT, num_pages=40, page_size=4) == expected

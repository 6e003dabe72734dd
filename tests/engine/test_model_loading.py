from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_driver import drive

from harness.engine.device.model_shape import ModelConfig, model_preset, model_presets, model_shape
from harness.engine.device.models import UnsupportedModelError, load_model, shape_from_transformers
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.request import SamplingParams

_TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_GPT_OSS = {
    **_TINY,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}


def test_presets_are_found() -> None:
    assert {"tiny", "small", "opt_13b", "llama_3_2_1b", "llama_3_1_8b", "hub"} <= set(
        model_presets()
    )
    with pytest.raises(ValueError, match="did you mean small"):
        model_preset("smal")


@pytest.mark.parametrize("name", sorted(set(model_presets()) - {"hub"}))
def test_formulas_give_the_shape_that_transformers_builds(name: str) -> None:
    config = model_preset(name)
    assert model_shape(config) == shape_from_transformers(config)


def test_known_sizes() -> None:
    opt = model_shape(model_preset("opt_13b"))
    assert opt.kv_bytes_per_token == 800 * 1024  # PagedAttention paper, section 3
    assert opt.num_parameters == pytest.approx(13e9, rel=0.02)
    assert model_shape(model_preset("llama_3_1_8b")).num_parameters == 8_030_261_248
    assert model_shape(model_preset("llama_3_2_1b")).num_parameters == 1_235_814_400


def test_a_shape_needs_no_torch() -> None:
    code = (
        "import sys; from harness.engine.device.model_shape import model_preset, model_shape; "
        "model_shape(model_preset('opt_13b')); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_model(model_preset("tiny")).model.state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = load_model(model_preset("tiny")).model.state_dict()
    other = load_model(model_preset("tiny", weight_seed=1)).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])
    assert first[name].std() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("family", "config", "architecture"),
    [
        ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}, "Bloom"),
        ("falcon", _TINY, "Falcon"),
        ("gpt_oss", _GPT_OSS, "GptOss"),
    ],
)
def test_an_architecture_that_bypasses_our_attention_is_refused(
    family: str, config: dict[str, object], architecture: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{architecture}.*choose an architecture"):
        load_model(ModelConfig(name=family, family=family, config=config))


def test_an_unknown_family_and_dtype_are_named() -> None:
    with pytest.raises(ValueError, match=r"model\.family='lama'"):
        load_model(ModelConfig(family="lama"))
    with pytest.raises(ValueError, match=r"model\.dtype='fp32'"):
        ModelConfig(dtype="fp32")


def _save_checkpoint(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "pages", "hold", "keys"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(folder)
    load_model(model_preset("tiny")).model.save_pretrained(folder)


def test_a_checkpoint_and_its_tokenizer(tmp_path: Path) -> None:
    _save_checkpoint(tmp_path)
    config = model_preset("hub", path=str(tmp_path))
    loaded = load_model(config)
    assert loaded.tokenizer is not None
    prompt = loaded.tokenizer("pages hold keys").input_ids
    assert prompt == [2, 3, 4]
    assert model_shape(config) == loaded.shape == model_shape(model_preset("tiny"))
    assert loaded.lean is not None

    def output(loaded_model: object) -> list[list[int]]:
        executor = TorchExecutor(loaded_model, num_pages=4, page_size=16, max_seqs=1, max_len=64)
        return drive(executor, [prompt], 20, num_pages=4, page_size=16)

    assert output(loaded) == output(load_model(model_preset("tiny")))


def test_hub_without_a_path_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"model\.path=DIR_OR_ID"):
        load_model(model_preset("hub", path=""))


def test_sampled_tokens_do_not_depend_on_the_batch() -> None:
    loaded = load_model(model_preset("tiny"))
    prompts = [[5 + i, 60, 7, 200 - i] for i in range(4)]
    params = [SamplingParams(temperature=0.9, top_k=50, top_p=0.95, seed=i) for i in range(4)]

    def run(which: list[int], chunk_size: int) -> list[list[int]]:
        executor = TorchExecutor(loaded, num_pages=64, page_size=4, max_seqs=4, max_len=64)
        return drive(
            executor,
            [prompts[i] for i in which],
            16,
            num_pages=64,
            page_size=4,
            chunk_size=chunk_size,
            sampling=[params[i] for i in which],
        )

    together = run([0, 1, 2, 3], 7)
    assert [run([i], 2)[0] for i in range(4)] == together
    assert run([3, 1], 64) == [together[3], together[1]]
    assert len({tuple(output) for output in together}) == 4


def test_kernels_refuse_a_page_size_they_do_not_take() -> None:
    with pytest.raises(ValueError, match="page size 0"):
        TorchExecutor(
            load_model(model_preset("tiny")), num_pages=4, page_size=0, max_seqs=1, max_len=64
        )

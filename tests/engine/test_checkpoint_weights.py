"""A checkpoint read a module at a time is the one that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_sharding import FAMILIES
from thread_ranks import ThreadRanks

from experiments.equality import compare_tokens
from harness.compose import compose_run, hydra_session
from harness.engine.device.checkpoint_weights import CheckpointError, WeightFiles, read_weights
from harness.engine.device.model_shape import model_preset
from harness.engine.device.models import load_model, shape_of
from harness.engine.device.module_weights import empty_decoder
from harness.engine.device.parallel.ranks import ALONE
from harness.engine.device.parallel.sharding import Splitter
from harness.measure.environment import capture_environment
from harness.runs.one_run import execute_run
from harness.runs.torch_device import TorchDevice

CPU = torch.device("cpu")


def _stored(family: str, folder: Path, **options: Any) -> Any:
    """What transformers reads from a checkpoint that is saved in `folder`."""
    model_type, sizes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, **options)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def _empty(folder: Path) -> Any:
    return empty_decoder(transformers.AutoConfig.from_pretrained(folder), torch.float32)


def _read(folder: Path) -> Any:
    model = _empty(folder)
    files = WeightFiles.of(model, str(folder))
    assert files is not None
    read_weights(model, files, CPU, lambda name, module: None)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt_neox"}))
def test_all_tensors_are_those_that_transformers_reads(family: str, tmp_path: Path) -> None:
    theirs = _stored(family, tmp_path)
    ours = _read(tmp_path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    for name, buffer in theirs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name


def test_a_checkpoint_in_many_files_and_of_another_type(tmp_path: Path) -> None:
    theirs = _stored("qwen3", tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = empty_decoder(transformers.AutoConfig.from_pretrained(tmp_path), torch.bfloat16)
    files = WeightFiles.of(model, str(tmp_path))
    assert files is not None
    read_weights(model, files, CPU, lambda name, module: None)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16()), name


def test_what_needs_more_than_reading_is_left_to_transformers(tmp_path: Path) -> None:
    _stored("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    head = stored.pop("lm_head.weight")
    save_file(stored, file)
    assert WeightFiles.of(_empty(tmp_path), str(tmp_path)) is None  # a weight has another name
    save_file({**stored, "lm_head.weight": head}, file)
    assert WeightFiles.of(_empty(tmp_path), str(tmp_path)) is not None
    config = json.loads((tmp_path / "config.json").read_text())
    tied = {**config, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))
    assert WeightFiles.of(_empty(tmp_path), str(tmp_path)) is None  # tied, and stored apart
    (tmp_path / "config.json").write_text(json.dumps(config))
    file.unlink()
    assert WeightFiles.of(_empty(tmp_path), str(tmp_path)) is None  # no safetensors
    _stored("gpt_neox", tmp_path / "gpt_neox")  # its output layer has another name in files
    assert WeightFiles.of(_empty(tmp_path / "gpt_neox"), str(tmp_path / "gpt_neox")) is None
    mixtral = transformers.AutoConfig.for_model(
        "mixtral",
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=64,
        vocab_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.AutoModelForCausalLM.from_config(mixtral).save_pretrained(tmp_path / "mixtral")
    assert WeightFiles.of(_empty(tmp_path / "mixtral"), str(tmp_path / "mixtral")) is None


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "opt"])
def test_a_rank_has_its_slice_and_never_more_than_a_module_beside_it(
    family: str, tmp_path: Path
) -> None:
    cut = _stored(family, tmp_path)
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in cut.modules())
    ranks = ThreadRanks(1, 2, meeting=None)
    Splitter(cut, shape_of(cut, cut.config, 4), ranks).split_all()
    model = _empty(tmp_path)
    files = WeightFiles.of(model, str(tmp_path))
    assert files is not None
    splitter = Splitter(model, shape_of(model, model.config, 4), ranks)
    held = []

    def split(name: str, module: torch.nn.Module) -> None:
        there = {id(p): p.numel() for p in model.parameters() if not p.is_meta}
        held.append(sum(there.values()))
        splitter(name, module)

    read_weights(model, files, CPU, split)
    for name, tensor in cut.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert max(held) <= sum(p.numel() for p in model.parameters()) + largest


def _edit_json(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _change_tensors(folder: Path, drop: str = "", **added: torch.Tensor) -> None:
    (file,) = folder.glob("*.safetensors")
    stored = {name: t for name, t in load_file(file).items() if name != drop}
    save_file({**stored, **added}, file, metadata={"format": "pt"})


def _cut_a_file(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


_K_PROJ = "model.layers.1.self_attn.k_proj.weight"
_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing tensor": (lambda f: _change_tensors(f, _K_PROJ), r"lacks 1 tensor \(.*1.*k_proj"),
    "a missing output layer": (lambda f: _change_tensors(f, "lm_head.weight"), r"\(lm_head.weight"),
    "tensors of a larger model": (
        lambda f: _edit_json(f, "config.json", num_hidden_layers=1),
        r"no place for \d tensors \(model\.layers\.1\.\S+, model\.layers\.1\.\S+, \S+, \.\.\.\)",
    ),
    "a tensor of nobody": (lambda f: _change_tensors(f, own=torch.ones(2)), r"1 tensor \(own\)"),
    "another shape": (
        lambda f: _edit_json(f, "config.json", intermediate_size=64),
        r"mlp\S+\.weight.*\((64, 96|96, 64)\).*\(64, 64\)",
    ),
    "half a file": (_cut_a_file, r"model\.safetensors is damaged"),
    "a text for an id": (
        lambda f: _edit_json(f, "generation_config.json", eos_token_id="5"),
        r"eos_token_id='5', which is none of its 131 token ids",
    ),
    "an id too large": (
        lambda f: _edit_json(f, "generation_config.json", eos_token_id=[2, 131]),
        r"eos_token_id=131",
    ),
    "no JSON": (lambda f: (f / "generation_config.json").write_text("{"), r"generation_config"),
}
_DAMAGES_OF_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing shard": (lambda f: min(f.glob("*.safetensors")).unlink(), "lacks model-00001-of-"),
    "a shard that is cut": (_cut_a_file, r"model-00001-of-\d+\.safetensors is damaged"),
    "an index of nothing": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "index.json is no index of weights",
    ),
}


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("damage", [*_DAMAGES, *_DAMAGES_OF_SHARDS])
def test_what_does_not_make_the_model_is_named(damage: str, num_ranks: int, tmp_path: Path) -> None:
    is_sharded = damage in _DAMAGES_OF_SHARDS
    _stored("llama", tmp_path, **({"max_shard_size": "50KB"} if is_sharded else {}))
    plant, message = {**_DAMAGES, **_DAMAGES_OF_SHARDS}[damage]
    plant(tmp_path)
    ranks = ALONE if num_ranks == 1 else ThreadRanks(0, num_ranks, meeting=None)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_model(model_preset("hub", path=str(tmp_path)), ranks=ranks)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_split_checkpoint_chooses_the_same_tokens(tmp_path: Path) -> None:
    """Each rank reads its part of it, and rank 0 what ends a sequence."""
    model = load_model(model_preset("tiny", weight_seed=5)).model
    model.generation_config.eos_token_id = [7, 11]
    model.save_pretrained(tmp_path / "checkpoint")
    with hydra_session():
        config = compose_run(
            [
                "model=hub",
                f"model.path={tmp_path / 'checkpoint'}",
                "device=cpu",
                "workload.num_requests=6",
                "workload.length_scale=0.05",
                "workload.output=forced_length",
            ]
        )
    frames, ends = [], []
    for ranks in (1, 2):
        config = replace(config, engine=replace(config.engine, tensor_parallel=ranks))
        device = TorchDevice(config.model, config.device, tensor_parallel=ranks)
        folder = tmp_path / str(ranks)
        folder.mkdir()
        environment = capture_environment("cpu", 1)
        try:
            record = execute_run(config, "run", "label", device, environment, folder)
        finally:
            device.close()
        ends.append(device.eos_ids)
        frames.append(pd.read_parquet(record.requests))
    assert sum(map(len, frames[0]["chosen_ids"])) > 20
    assert not compare_tokens(*frames, forced=False)
    assert ends == [{7, 11}, {7, 11}]

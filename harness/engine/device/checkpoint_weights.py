"""A checkpoint: whole, or read one module at a time. What it lacks is an error, never random."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

from harness.engine.device.module_weights import OnMade, fill_modules, full_name, quiet

_NUM_NAMED = 3


class CheckpointError(ValueError):
    """What is stored is not the model that its config describes."""


def load_whole(path: str, hf_config: Any, dtype: torch.dtype) -> Any:
    """The model of `path`, a folder or a hub id, as transformers reads it. Raises CheckpointError
    where a file cannot be read, or a tensor is missing, left over or of another shape."""
    _files(path)
    try:
        with quiet():  # what it reports is raised below
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                config=hf_config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, by name
            )
    except Exception as error:  # of a format's reader, of the hub, of a conversion
        text = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {text})"
        ) from error
    _check_report(path, hf_config, report)
    model.generation_config = generation_config(path, model)
    return model


def _check_report(path: str, hf_config: Any, report: Mapping[str, Any]) -> None:
    """Raise CheckpointError for anything that transformers reports of a checkpoint's tensors. It
    leaves out what is tied to another tensor, and what its architectures declare to be harmless."""
    other_shapes = [
        f"{name} ({tuple(stored)} stored, {tuple(wanted)} by the config)"
        for name, stored, wanted in report["mismatched_keys"]
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (
            ("it lacks", report["missing_keys"]),
            ("it has no place for", report["unexpected_keys"]),
            ("of another shape:", other_shapes),
            ("not read:", report["error_msgs"]),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} is not the {hf_config.model_type} of its config.json: "
            f"{'; '.join(problems)}: complete the weights or correct the config"
        )


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    named = [first, *others[: _NUM_NAMED - 1]]
    count = 1 + len(others)
    noun = "1 tensor" if count == 1 else f"{count} tensors"
    return f"{noun} ({', '.join(named)}{', ...' if count > _NUM_NAMED else ''})"


def generation_config(path: str, model: Any) -> Any:
    """What a checkpoint says of generation, or its config where it has no file for that. Raises
    CheckpointError for end-of-sequence ids that the vocabulary does not have."""
    file = _file(path, GENERATION_CONFIG_NAME)
    try:
        found = (
            model.generation_config
            if file is None
            else transformers.GenerationConfig.from_pretrained(path)
        )
    except Exception as error:  # of JSON, and of transformers' own checks
        text = " ".join(str(error).split())
        raise CheckpointError(f"{file} cannot be read: {text}") from error
    ids, vocab_size = found.eos_token_id, model.config.get_text_config().vocab_size
    for each in ids if isinstance(ids, list) else [] if ids is None else [ids]:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise CheckpointError(
                f"the checkpoint {path} ends sequences at eos_token_id={each!r}, which is none of "
                f"its {vocab_size} token ids: correct {GENERATION_CONFIG_NAME} or config.json"
            )
    return found


class WeightFiles:
    """The safetensors files of a checkpoint that has a model's weights by the names that the model
    has for them, as they are. by_name: each tensor's file."""

    def __init__(self, by_name: Mapping[str, Path]) -> None:
        self._by_name = by_name

    @staticmethod
    def of(model: Any, path: str) -> WeightFiles | None:
        """Those of `path`, a folder or a hub id; None where transformers must convert what is in
        them for `model` (quantised or merged weights, other names), or there are none."""
        if getattr(model.config, "quantization_config", None) is not None:
            return None
        conversions = get_model_conversion_mapping(model)
        if not all(isinstance(conversion, WeightRenaming) for conversion in conversions):
            return None
        by_name = _files(path)
        needed = dict(model.named_parameters()).keys()  # of tied weights the first one
        stored_buffers = {n for n, _ in model.named_buffers()} & model.state_dict().keys()
        left = SimpleNamespace(
            missing_keys=(needed | stored_buffers) - by_name.keys(),
            unexpected_keys=by_name.keys() - needed - stored_buffers,
        )
        model._adjust_missing_and_unexpected_keys(left)
        if left.missing_keys or left.unexpected_keys:
            return None  # transformers reports them; what is tied and stored apart may differ
        return WeightFiles(by_name)

    def has(self, name: str) -> bool:
        return name in self._by_name

    def of_tensor(self, name: str) -> Path:
        return self._by_name[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Read it, to the host."""
        with safe_open(self._by_name[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]


def read_weights(model: Any, files: WeightFiles, device: torch.device, on_made: OnMade) -> None:
    """Give an empty decoder on `device` a checkpoint's weights, in its own dtype. Raises
    CheckpointError where a tensor has another shape than the model's config says."""

    def give(name: str, module: nn.Module, owner: Any) -> None:
        if next(module.buffers(recurse=False), None) is not None:
            owner._init_weights(module)  # buffers are reckoned, not stored
        own = {**dict(module.named_parameters(recurse=False)), **_stored_buffers(module)}
        for own_name, place in own.items():
            stored_name = full_name(name, own_name)
            if not files.has(stored_name):
                continue  # tied to one that is there
            stored = files.tensor(stored_name)
            if stored.shape != place.shape:
                raise CheckpointError(
                    f"{stored_name} has the shape {tuple(stored.shape)} in "
                    f"{files.of_tensor(stored_name)}, {tuple(place.shape)} by the config: the two "
                    "do not belong together"
                )
            place.copy_(stored)

    fill_modules(model, device, give, on_made)


def _stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    transient = module._non_persistent_buffers_set
    return {n: b for n, b in module.named_buffers(recurse=False) if n not in transient}


def _files(path: str) -> dict[str, Path]:
    """The safetensors file of each tensor of a checkpoint. Raises CheckpointError for a file that
    the index names and that is not there, and for one that is not whole."""
    index = _file(path, SAFE_WEIGHTS_INDEX_NAME)
    names = {SAFE_WEIGHTS_NAME}
    if index is not None:
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of weights: {error!r}") from error
    by_name: dict[str, Path] = {}
    for name in sorted(names):
        file = _file(path, name)
        if file is None:
            if index is None:
                return {}
            raise CheckpointError(f"the checkpoint {path} lacks {name}, which {index.name} names")
        try:
            with safe_open(file, framework="pt") as opened:
                by_name.update(dict.fromkeys(opened.keys(), file))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged, copy it again: {error}") from error
    return by_name


def _file(path: str, name: str) -> Path | None:
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)

"""A checkpoint's weights, read one module at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from harness.engine.device.module_weights import OnMade, fill_modules, full_name


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
        every = dict(model.named_parameters(remove_duplicate=False)).keys()
        if not needed <= by_name.keys() or by_name.keys() & (every - needed):
            return None  # what is tied and stored apart may differ
        return WeightFiles(by_name)

    def has(self, name: str) -> bool:
        return name in self._by_name

    def tensor(self, name: str) -> torch.Tensor:
        """Read it, to the host."""
        with safe_open(self._by_name[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]


def read_weights(model: Any, files: WeightFiles, device: torch.device, on_made: OnMade) -> None:
    """Give an empty decoder on `device` a checkpoint's weights, in its own dtype. Raises ValueError
    where a tensor has another shape than the model's config says."""

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
                raise ValueError(
                    f"{stored_name} has the shape {tuple(stored.shape)} in the checkpoint, its "
                    f"config says {tuple(place.shape)}: the two do not belong together"
                )
            place.copy_(stored)

    fill_modules(model, device, give, on_made)


def _stored_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    transient = module._non_persistent_buffers_set
    return {n: b for n, b in module.named_buffers(recurse=False) if n not in transient}


def _files(path: str) -> dict[str, Path]:
    """Of all tensors of a checkpoint."""
    index = _file(path, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        of_tensor: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        parts = {name: _file(path, name) for name in set(of_tensor.values())}
        return {name: part for name, file in of_tensor.items() if (part := parts[file]) is not None}
    single = _file(path, SAFE_WEIGHTS_NAME)
    if single is None:
        return {}
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _file(path: str, name: str) -> Path | None:
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)

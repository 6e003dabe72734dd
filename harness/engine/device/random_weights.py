"""A decoder with random weights, made one module at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

OnMade = Callable[[str, nn.Module], None]
"""Told of each module that has its own weights now, and of its name in the model."""


class NoWeightsError(ValueError):
    """The architecture does not say how a weight begins."""


def empty_decoder(hf_config: Any, dtype: torch.dtype) -> Any:
    """The model of a transformers config, without memory behind its weights (the meta device)."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
    model.tie_weights(recompute_mapping=False)
    return model


def draw_weights(model: Any, seed: int, device: torch.device, on_made: OnMade) -> None:
    """Give an empty decoder on `device` the weights its architecture begins a training with.

    They depend on the seed, the model's shape and the type of the device alone; the caller's random
    state is left as it was. `on_made` may put a slice in a weight's place at once, so that a device
    need hold no more than its slices and the largest module. Raises NoWeightsError.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        _draw("", model, model, device, on_made)
    model.tie_weights(recompute_mapping=False)  # modules that share a weight had one each


def _draw(name: str, module: Any, owner: Any, device: torch.device, on_made: OnMade) -> None:
    """Children first, each by the rules of the model it stands in (`owner`): transformers' own
    order and rules."""
    for child_name, child in module.named_children():
        whose = child if isinstance(child, transformers.PreTrainedModel) else owner
        _draw(f"{name}.{child_name}" if name else child_name, child, whose, device, on_made)
    module.to_empty(device=device, recurse=False)
    own = dict(module.named_parameters(recurse=False))
    for parameter in own.values():
        parameter.fill_(torch.nan)
    owner._init_weights(module)
    for parameter_name, parameter in own.items():
        if parameter.numel() and parameter.flatten()[-1].isnan():
            raise NoWeightsError(
                f"{type(owner).__name__} leaves {name}.{parameter_name} without a value: use a "
                "checkpoint (model=hub model.path=DIR_OR_ID), or an architecture such as llama"
            )
    on_made(name, module)

"""A decoder's random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.engine.device.module_weights import OnMade, fill_modules, full_name


class NoWeightsError(ValueError):
    """The architecture does not say how a weight begins."""


def draw_weights(model: Any, seed: int, device: torch.device, on_made: OnMade) -> None:
    """Give an empty decoder on `device` the weights its architecture begins a training with.

    They depend on the seed, the model's shape and the type of the device alone; the caller's random
    state is left as it was. Raises NoWeightsError.
    """
    fill_modules(model, device, _draw, on_made, seed)


def _draw(name: str, module: nn.Module, owner: Any) -> None:
    own = dict(module.named_parameters(recurse=False))
    for parameter in own.values():
        parameter.fill_(torch.nan)
    owner._init_weights(module)
    for parameter_name, parameter in own.items():
        if parameter.numel() and parameter.flatten()[-1].isnan():
            raise NoWeightsError(
                f"{type(owner).__name__} leaves {full_name(name, parameter_name)} without a value: "
                "use a checkpoint (model=hub model.path=DIR_OR_ID), or a family such as llama"
            )

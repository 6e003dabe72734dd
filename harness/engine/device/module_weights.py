"""Weights that a decoder is given one module at a time, so that it need never be there whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

OnMade = Callable[[str, nn.Module], None]
"""Told of each module that has its own weights now, and of its name in the model; may put a slice
in a weight's place at once, so that no more is there than slices and one whole module."""

Give = Callable[[str, nn.Module, Any], None]
"""Gives a module, of this name, its own weights and buffers, for which there is memory. The last
argument is the model whose rules it stands under."""


@contextmanager
def quiet() -> Iterator[None]:
    """transformers logs errors only."""
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)


def empty_decoder(hf_config: Any, dtype: torch.dtype) -> Any:
    """The model of a transformers config, without memory behind its weights (the meta device)."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
    model.tie_weights(recompute_mapping=False)
    return model


def fill_modules(
    model: Any, device: torch.device, give: Give, on_made: OnMade, seed: int = 0
) -> None:
    """Have `give` fill every module of an empty decoder on `device`; children first, as
    transformers does. Weights that modules share are tied again at the end. What is drawn at random
    depends on `seed` alone; the caller's random state is left as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        _fill("", model, model, device, give, on_made)
    model.tie_weights(recompute_mapping=False)


def _fill(
    name: str, module: Any, owner: Any, device: torch.device, give: Give, on_made: OnMade
) -> None:
    for child_name, child in module.named_children():
        whose = child if isinstance(child, transformers.PreTrainedModel) else owner
        _fill(full_name(name, child_name), child, whose, device, give, on_made)
    module.to_empty(device=device, recurse=False)
    give(name, module, owner)
    on_made(name, module)


def full_name(module: str, own: str) -> str:
    """Of what a module calls `own`."""
    return f"{module}.{own}" if module else own

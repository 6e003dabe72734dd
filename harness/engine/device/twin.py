"""A decoder's small twin: the same architecture and kinds of layers, narrow, with short limits."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

LIMIT = 6
"""Tokens of a twin's windows, chunks, and whatever else ends within a context."""

_MOST_LAYERS = 8
_SOFTCAP = 2.0
_HEADS = 2
_VOCABULARY = 128
_SMALL: Mapping[str, int] = {
    r"intermediate|ffn|n_inner|mlp_dim|expert.*(dim|size)": 48,
    r"experts_per_tok|moe_top_?k|experts_top_?k|num_selected": 2,
    r"num_.*experts|n_routed_experts|num_local_experts": 4,
    r"n_group|topk_group|num_expert_group": 1,
    r"per_layer_input|laurel": 8,
}
_LIMITS = re.compile(r"window|chunk|local_(?!experts)|block_size|floor_scale")
_WIDTHS = re.compile(
    r"dim|size|rank|head|layer|group|vocab|theta|base|position|expert|seed|idx|index|num_|n_"
)


def twin_config(hf_config: Any, num_layers: int) -> Any:
    """The first `num_layers` layers of a decoder's config. Head sizes, and how many query heads
    share a key, stay; widths, experts and the vocabulary shrink, and so do windows, chunks and
    integers of no known use, each of which might limit what a query sees."""
    text = hf_config.get_text_config()
    names = {name: getattr(type(text), "attribute_map", {}).get(name, name) for name in _ROLES}
    values = copy.deepcopy(text.to_dict())
    for name in ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type"):
        values.pop(name, None)
    old = {role: values.get(name) for role, name in names.items()}
    new = _sizes(old, num_layers)
    for name, value in values.items():
        if isinstance(value, list | tuple) and len(value) == old["num_hidden_layers"]:
            values[name] = value[:num_layers]
        elif "softcap" in name and value:
            values[name] = min(float(value), _SOFTCAP)
        elif type(value) is int:
            values[name] = _shrunken(name, value, old, new)
    values |= {names[role]: size for role, size in new.items() if old[role] is not None}
    for name, value in values.items():
        if name.endswith("token_id") and value is not None:
            values[name] = 0
    return type(text).from_dict(values)


_ROLES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "vocab_size",
)


def _sizes(old: Mapping[str, Any], num_layers: int) -> dict[str, int]:
    heads, hidden = old["num_attention_heads"], old["hidden_size"]
    kv_heads = old["num_key_value_heads"] or heads
    few = min(kv_heads, _HEADS)
    many = few * min(max(1, heads // kv_heads), _HEADS)
    return {
        "num_hidden_layers": num_layers,
        "num_attention_heads": many,
        "num_key_value_heads": few,
        "hidden_size": many * max(1, hidden // heads),
        "vocab_size": min(_VOCABULARY, old["vocab_size"]),
    }


def _shrunken(name: str, value: int, old: Mapping[str, Any], new: Mapping[str, int]) -> int:
    if _LIMITS.search(name):
        return min(value, LIMIT) if value > 0 else value
    for pattern, most in _SMALL.items():
        if re.search(pattern, name):
            return min(value, most)
    if value == old["hidden_size"]:
        return new["hidden_size"]
    if value <= LIMIT or _WIDTHS.search(name):
        return value
    return LIMIT


def num_layers_of_all_kinds(layers: Sequence[nn.Module]) -> int:
    """How many of `layers`, from the first on, have one of each kind among them; at least two."""
    if not layers:
        return 2
    kinds = [_kind(layer) for layer in layers]
    last_new = max(kinds.index(kind) for kind in kinds)
    return min(max(2, last_new + 1), _MOST_LAYERS, len(kinds))


def _kind(layer: nn.Module) -> Any:
    """Of modules and settings, not of sizes."""
    return tuple(
        (
            name,
            type(module),
            tuple(
                (key, value is None if isinstance(value, int) and value > 1 else value)
                for key, value in sorted(vars(module).items())
                if key != "layer_idx" and isinstance(value, int | str | None)
            ),
        )
        for name, module in layer.named_modules()
    )


def give_weights(model: nn.Module) -> None:
    """Random weights of a scale at which neither attention nor its limits can be overlooked, the
    same ones every time. The caller's random state is left as it was."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(1.5 * parameter.shape[-1] ** -0.5 * noise)

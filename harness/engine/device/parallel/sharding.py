"""Splits a decoder's weights over ranks, Megatron's way.

Column-parallel projections keep some of their outputs, row-parallel ones some of their inputs and
add up their results; the embedding and the output layer are split by vocabulary (Shoeybi et al.,
Megatron-LM, 2019, section 3). What is split how is transformers' own plan of the architecture
(`tp_plan`); OPT, which has none, gets one here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.device.model_shape import ModelShape
from harness.engine.device.parallel.ranks import Ranks, local_rows

_OPT_PLAN: Mapping[str, str] = {
    "model.decoder.embed_tokens": "embedding_rowwise",
    "model.decoder.layers.*.self_attn.q_proj": "colwise",
    "model.decoder.layers.*.self_attn.k_proj": "colwise",
    "model.decoder.layers.*.self_attn.v_proj": "colwise",
    "model.decoder.layers.*.self_attn.out_proj": "rowwise",
    "model.decoder.layers.*.fc1": "colwise",
    "model.decoder.layers.*.fc2": "rowwise",
    "lm_head": "colwise_gather_output",
}
_OWN_PLANS = {"opt": _OPT_PLAN}
_WHOLE = {"replicated_with_grad_allreduce"}
_KV_PROJECTIONS = ("k_proj", "v_proj")


class NotSplitError(ValueError):
    """The model cannot be split over so many ranks, or over any."""


class Splitter:
    """Leaves `ranks`' slice of weights in modules, and has them do what belongs to all together.

    The whole model is to be of `shape`, which splits over `ranks`. Raises NotSplitError where the
    architecture has no plan, or one that is not understood here.
    """

    def __init__(self, model: Any, shape: ModelShape, ranks: Ranks) -> None:
        self._model = model
        self._shape = shape
        self._ranks = ranks
        self._styles = _styles(model)

    def __call__(self, name: str, module: Any) -> None:
        """Split one module of the model, which has its own weights. Those that modules share are
        to be tied again when all are split. Raises NotSplitError where they do not divide."""
        style = self._styles.get(name)
        if style == "embedding_rowwise":
            _split_embedding(module, self._ranks)
        elif style == "colwise":
            _split_outputs(name, module, self._shape, self._ranks)
        elif style == "rowwise":
            _split_inputs(name, module, self._ranks)
        elif style == "colwise_gather_output":
            _split_output_layer(module, self._ranks)
        if self._model.config.model_type in _OWN_PLANS and hasattr(module, "num_heads"):
            module.num_heads //= self._ranks.size

    def split_all(self) -> None:
        """Split a model that has all of its weights."""
        for name, module in self._model.named_modules():
            self(name, module)
        self._model.tie_weights(recompute_mapping=False)


def _styles(model: Any) -> dict[str, str]:
    """How each of the model's modules is split, by its name."""
    architecture = type(model).__name__
    plan = _OWN_PLANS.get(model.config.model_type) or getattr(model, "tp_plan", None) or {}
    if not plan:
        raise NotSplitError(
            f"{architecture} has no plan of how to split it over ranks (transformers' tp_plan): "
            "use engine.tensor_parallel=1, or a model such as llama, qwen, mistral, gemma or opt"
        )
    known = {"colwise", "rowwise", "embedding_rowwise", "colwise_gather_output", *_WHOLE}
    for pattern, style in plan.items():
        is_inside = style == "colwise_gather_output" and pattern != "lm_head"
        if style not in known or is_inside:
            raise NotSplitError(
                f"{architecture} splits {pattern} in a way that is not supported ({style}): use "
                "engine.tensor_parallel=1, or a model such as llama, qwen, mistral, gemma or opt"
            )
    return {
        name: style
        for name, _ in model.named_modules()
        for pattern, style in plan.items()
        if fnmatchcase(name, pattern)
    }


def _split_embedding(module: Any, ranks: Ranks) -> None:
    _cut(module, "weight", lambda whole: _vocabulary_slice(whole, ranks))
    num_rows = len(module.weight)
    module.num_embeddings, module.padding_idx = num_rows, None
    own_forward = module.forward

    def forward(ids: Tensor) -> Tensor:
        local, is_elsewhere = local_rows(ids, ranks.rank, num_rows)
        return ranks.sum(own_forward(local).masked_fill(is_elsewhere[..., None], 0.0))

    module.forward = forward  # not a subclass: some architectures scale their embedding in one


def _split_outputs(name: str, module: Any, shape: ModelShape, ranks: Ranks) -> None:
    """A part of the outputs; of keys and values whole heads, which ranks share where there are
    fewer heads than ranks."""
    num_parts, part = ranks.size, ranks.rank
    if name.rsplit(".", 1)[-1] in _KV_PROJECTIONS:
        num_parts = min(num_parts, shape.num_kv_heads)
        part = ranks.rank * num_parts // ranks.size
    _check_even(name, module.out_features, num_parts)
    for parameter in ("weight", "bias"):
        _cut(module, parameter, lambda whole: whole.chunk(num_parts)[part])
    module.out_features = len(module.weight)


def _split_inputs(name: str, module: Any, ranks: Ranks) -> None:
    """A part of the inputs; the products are added up, the bias once."""
    _check_even(name, module.in_features, ranks.size)
    _cut(module, "weight", lambda whole: whole.chunk(ranks.size, dim=1)[ranks.rank])
    if ranks.rank > 0:
        _cut(module, "bias", torch.zeros_like)
    module.in_features = module.weight.shape[1]
    module.register_forward_hook(lambda _, arguments, partial: ranks.sum(partial))


def _split_output_layer(module: Any, ranks: Ranks) -> None:
    vocab_size = module.out_features
    for parameter in ("weight", "bias"):
        _cut(module, parameter, lambda whole: _vocabulary_slice(whole, ranks))
    module.out_features = len(module.weight)
    module.register_forward_hook(
        lambda _, arguments, logits: ranks.join_vocabulary(logits, vocab_size)
    )


def _vocabulary_slice(whole: Tensor, ranks: Ranks) -> Tensor:
    """Equally many rows on every rank; the last ones are padded with zeros."""
    num_rows = -(-len(whole) // ranks.size)
    part = whole[ranks.rank * num_rows : (ranks.rank + 1) * num_rows]
    padding = part.new_zeros((num_rows - len(part), *part.shape[1:]))
    return torch.cat((part, padding))


def _cut(module: Any, name: str, cut: Callable[[Tensor], Tensor]) -> None:
    """Put a slice in a parameter's place, if there is one, in memory of its own, so that the whole
    can go."""
    whole = getattr(module, name, None)
    if whole is not None:
        part = cut(whole.data).clone(memory_format=torch.contiguous_format)
        setattr(module, name, nn.Parameter(part, requires_grad=False))


def _check_even(name: str, count: int, num_parts: int) -> None:
    if count % num_parts:
        raise NotSplitError(
            f"{name} has {count} columns, which {num_parts} ranks cannot share evenly: choose an "
            "engine.tensor_parallel that divides it"
        )

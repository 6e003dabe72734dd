"""What a model's own cache keeps of a sequence, seen by giving it tokens on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

_NO_ATTENTION = "kvarena_none"
_MOST_TOKENS = 515
"""Odd, and more than the tokens that a compressing cache makes one entry of."""


class UnknownCacheError(ValueError):
    """What the model keeps of a sequence is not keys and values, or cannot be known."""


class LayerCache(NamedTuple):
    """What a layer of the cache keeps, in the model's dtype: bytes of each token, and of a
    sequence whatever its length. num_heads, head_dim: of its keys, or of its values where these
    are wider."""

    token_bytes: int
    state_bytes: int
    num_heads: int = 1
    head_dim: int = 1


def probe_cache(model: Any) -> tuple[LayerCache, ...]:
    """Of each layer of the cache of `model`, a decoder on the meta device.

    Layers of one kind (the same modules, sizes and settings) keep the same, so one of each is
    computed; where that leaves something open, all of them are. Raises UnknownCacheError.
    """
    name = type(model).__name__
    blocks = decoder_layers(model)
    own_attention = model.config._attn_implementation
    with suppress(Exception):  # of others shapes depend on data, or are of one dtype
        model.set_experts_implementation("batched_mm")
    failure: Exception | None = None
    for some in (True, False):
        for attention in (_NO_ATTENTION, own_attention):  # the first is quick and needs no mask
            try:
                model.set_attn_implementation(attention)
                return _probe(model, blocks if some else ())
            except UnknownCacheError as error:
                raise UnknownCacheError(f"{name} {error}") from error
            except Exception as error:  # a forward pass without data can die of anything
                failure = error
    text = " ".join(str(failure).split())
    raise UnknownCacheError(
        f"{name} does not show what its cache keeps of a token ({type(failure).__name__}: {text})"
    ) from failure


def _counts(model: Any) -> tuple[int, int, int]:
    """Tokens of three sequences."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return 2, 3, max(4, min(_MOST_TOKENS, longest or _MOST_TOKENS))


class _Kept(NamedTuple):
    """What a layer of a cache holds after so many tokens. window: tokens it keeps at most, and one
    more."""

    num_tokens: int
    tensors: dict[str, Tensor]
    window: int | None

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def num_kept(self) -> int:
        if self.window is None:
            return self.num_tokens
        return min(self.num_tokens, self.window - 1)


def _contents(two: _Kept, three: _Kept, many: _Kept) -> LayerCache:
    """What does not change from 2 to 3 tokens is state, the rest grows with tokens."""
    if three.num_kept != 3:
        raise UnknownCacheError(f"has a window of {three.window} tokens, which is too short")
    token_bytes = three.num_bytes - two.num_bytes
    state_bytes = two.num_bytes - 2 * token_bytes
    if many.num_bytes != state_bytes + many.num_kept * token_bytes:
        raise UnknownCacheError(
            f"keeps {many.num_bytes} bytes of {many.num_tokens} tokens in a layer and "
            f"{three.num_bytes} of 3: not the same of every token"
        )
    kept = [t for name in ("keys", "values") if (t := three.tensors.get(name)) is not None]
    if not token_bytes or any(t.ndim != 4 for t in kept):
        return LayerCache(token_bytes, state_bytes)
    num_heads = max((int(t.shape[1]) for t in kept), default=1)
    return LayerCache(
        token_bytes, state_bytes, num_heads, max((int(t.shape[3]) for t in kept), default=1)
    )


def _probe(model: Any, blocks: Sequence[Any]) -> tuple[LayerCache, ...]:
    """By the first of each kind of `blocks` and the last one, if these alone tell; else by all."""
    kinds = [_kind(block) for block in blocks]
    first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
    live = {*first.values(), len(blocks) - 1}
    remembered = {kind: _Remembered(blocks[index]) for kind, index in first.items()}
    for index, block in enumerate(blocks):
        if index not in live:
            block.forward = remembered[kinds[index]].skip
    try:
        layers = [_layers(model, n) for n in _counts(model)]
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
    if not blocks:
        return tuple(map(_contents, *layers))
    if any(len(each) != len(blocks) for each in layers):
        raise LookupError("the cache has other layers than the model")
    return tuple(_contents(*(each[first[kind]] for each in layers)) for kind in kinds)


class _Remembered:
    """A layer's forward pass, whose result has the form of all others' of its kind."""

    def __init__(self, block: Any) -> None:
        self._forward: Callable[..., Any] = block.forward
        self._rest: tuple[Any, ...] | None = None
        block.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._forward(*args, **kwargs)
        self._rest = result[1:] if isinstance(result, tuple) else None
        return result

    def skip(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """What a layer that is left out gives on."""
        return hidden if self._rest is None else (hidden, *self._rest)


def _layers(model: Any, num_tokens: int) -> list[_Kept]:
    """What each layer of the cache holds after a first forward pass over so many tokens."""
    ids = torch.zeros((1, num_tokens), dtype=torch.long, device="meta")
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
    cache = output.get("past_key_values", output.get("cache_params"))
    layers = getattr(cache, "layers", None)
    if not layers:
        raise UnknownCacheError("keeps no keys and values of a sequence in a cache of layers")
    return [
        _Kept(num_tokens, dict(_tensors(vars(layer))), getattr(layer, "sliding_window", None))
        for layer in layers
    ]


def _tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All that hold more than one number, by their place in `values`."""
    if isinstance(values, Tensor) and values.ndim:
        yield name, values
    elif isinstance(values, dict | list | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}".lstrip("."))


def decoder_layers(model: Any) -> Sequence[Any]:
    """The modules of `model` that are its layers; none where they are not in one list."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if lists else []


def _kind(block: nn.Module) -> Any:
    """Equal for layers of the same modules, sizes and settings, whatever their place."""
    return tuple(
        (
            name,
            type(module),
            tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False)),
            tuple(
                (key, repr(value))
                for key, value in sorted(vars(module).items())
                if key != "layer_idx" and isinstance(value, int | float | str | tuple | None)
            ),
        )
        for name, module in block.named_modules()
    )


def _attend_to_nothing(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """The shape that attention gives: (1, T, H, D)."""
    batch, heads, num_tokens, _size = query.shape
    return query.new_empty((batch, num_tokens, heads, value.shape[-1])), None


AttentionInterface.register(_NO_ATTENTION, _attend_to_nothing)

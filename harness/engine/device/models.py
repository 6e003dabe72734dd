"""Builds decoders: random weights from a preset's shape, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
import transformers

from harness.engine.device.attention import ATTENTION_NAME, AttentionRefusedError, AttentionStep
from harness.engine.device.cache_probe import decoder_layers, probe_cache
from harness.engine.device.checkpoint_weights import (
    CheckpointError,
    WeightFiles,
    generation_config,
    load_whole,
    read_weights,
)
from harness.engine.device.hub import check_reachable
from harness.engine.device.lean.build import LeanModel, build
from harness.engine.device.model_shape import ModelConfig, ModelShape, check_sizes, model_shape
from harness.engine.device.module_weights import OnMade, empty_decoder, quiet
from harness.engine.device.parallel.ranks import ALONE, Ranks
from harness.engine.device.parallel.sharding import Splitter
from harness.engine.device.random_weights import draw_weights
from harness.engine.device.twin import num_layers_of_all_kinds, twin_config

_ADVICE = (
    "choose an architecture that dispatches through transformers' AttentionInterface, "
    "such as llama, qwen2, mistral, gemma2, gpt2 or opt"
)


class UnsupportedModelError(ValueError):
    """The architecture cannot run on paged KV through the registered attention function."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder in evaluation mode whose attention goes through `harness.engine.device.attention`.

    tokenizer: a transformers tokenizer where the checkpoint has one, else None.
    shape: of the whole model. ranks: what it is split over; `model` then has this rank's slice.
    lean: the lean forward pass, which shares the model's weights, or None where the model
        is not of a build that has one.
    """

    model: Any
    tokenizer: Any | None
    shape: ModelShape
    lean: LeanModel | None
    ranks: Ranks = ALONE

    @property
    def rank_shape(self) -> ModelShape:
        """`shape` with the heads that this rank has."""
        return self.shape.of_rank(self.ranks.size)


def load_model(
    config: ModelConfig, device: torch.device | str = "cpu", ranks: Ranks = ALONE
) -> LoadedModel:
    """Build `config` on `device`, or a rank's slice of it; then all of `ranks` call this at once.

    Random weights depend on `weight_seed`, the shape and the device type only; the caller's
    random state is left as it was. Raises UnsupportedModelError where a probe forward does
    not call our attention exactly once a layer, or the model cannot be split so, and
    CheckpointError for what is stored incomplete. `max_positions` of its shape may be less than
    the config's.
    """
    device = torch.device(device)
    model, give_weights = _begin(config, device, ranks)
    shape = model_shape(config)
    try:
        of_rank = shape.of_rank(ranks.size)
        splitter = Splitter(model, shape, ranks) if ranks.size > 1 else None
        if give_weights is not None:
            give_weights(splitter or _keep_whole)
        elif splitter is not None:
            splitter.split_all()
    except CheckpointError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from error
    model = model.eval().requires_grad_(False).to(device)
    _bind_attention(model, of_rank)
    lean = build(model, ranks=ranks) if _attends_alike(model) else None
    longest = min(shape.max_positions, *_lengths_of_same_angles(model))
    return LoadedModel(
        model=model,
        tokenizer=_tokenizer(config),
        shape=replace(shape, max_positions=longest),
        lean=lean,
        ranks=ranks,
    )


def _lengths_of_same_angles(model: Any) -> list[int]:
    """Up to which a sequence's rotary angles do not depend on its length, nor, in one flat batch,
    on that of others (LongRoPE's do beyond the original length); at least the longest there is."""
    text = model.config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    lengths = [
        each.get("original_max_position_embeddings")
        for each in kinds
        if each.get("rope_type") == "longrope"
    ]
    return [sys.maxsize, *filter(None, lengths)]


def _begin(
    config: ModelConfig, device: torch.device, ranks: Ranks
) -> tuple[Any, Callable[[OnMade], None] | None]:
    """A model, and what gives it weights on `device`, where it does not have them on the host."""
    if config.path is None:
        model = empty_decoder(_random_config(config), getattr(torch, config.dtype))
        return model, partial(draw_weights, model, config.weight_seed, device)
    hf_config = _checkpoint_config(config)
    dtype = _checkpoint_dtype(config, hf_config)
    if ranks.size > 1:  # each rank would hold the whole at once, on one host
        model = empty_decoder(hf_config, dtype)
        files = WeightFiles.of(model, config.path)
        if files is not None:
            model.generation_config = generation_config(config.path, model)
            return model, partial(read_weights, model, files, device)
    transformers.utils.logging.disable_progress_bar()  # its lock outlives a worker, with a warning
    return load_whole(config.path, hf_config, dtype), None


def _keep_whole(name: str, module: torch.nn.Module) -> None:
    """What one rank alone does with a module."""


def _attends_alike(model: Any) -> bool:
    """Whether the lean forward pass of a small twin of `model` attends as the twin's own eager
    attention does. Raises UnsupportedModelError where the twin does not do so on pages at all."""
    from harness.engine.device.attention_check import TwinOf, check

    architecture = type(model).__name__
    num_layers = num_layers_of_all_kinds(decoder_layers(model))
    try:
        with quiet():
            twin = twin_config(model.config, num_layers)
            verdict = check(TwinOf(type(twin), twin.to_json_string(use_diff=False), twin))
    except Exception as error:  # a config may be of any kind
        text = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"{architecture} cannot be checked on a small twin ({type(error).__name__}: {text}): "
            f"{_ADVICE}"
        ) from error
    if verdict.own is not None:
        raise UnsupportedModelError(
            f"{architecture} attends in another way than the paged attention of this engine: "
            f"logits of a small twin differ from those of its own eager attention {verdict.own}: "
            f"{_ADVICE}"
        )
    return verdict.lean is None


def shape_from_transformers(config: ModelConfig) -> ModelShape:
    """`model_shape` for whatever has no formula: a model without memory behind its weights."""
    if config.path is not None:
        hf_config = _checkpoint_config(config)
        dtype = _checkpoint_dtype(config, hf_config)
    else:
        hf_config = _random_config(config)
        dtype = getattr(torch, config.dtype)
    check_sizes(hf_config.get_text_config().to_dict())
    return _known_shape(_Described(hf_config.to_json_string(use_diff=False), dtype, hf_config))


@dataclass(frozen=True, slots=True)
class _Described:
    """An architecture, told from others by its values."""

    values: str
    dtype: torch.dtype
    hf_config: Any = field(compare=False)


@lru_cache
def _known_shape(described: _Described) -> ModelShape:
    model = empty_decoder(described.hf_config, described.dtype)
    try:
        shape = shape_of(model, described.hf_config, described.dtype.itemsize)
    except (ValueError, AttributeError, TypeError) as error:
        name = type(model).__name__
        raise UnsupportedModelError(f"{name} is not described as a decoder: {error}") from error
    return _with_cache(shape, model)


def shape_of(model: Any, hf_config: Any, dtype_bytes: int) -> ModelShape:
    """By what a config says, as if every layer kept a key and a value of every KV head."""
    text = hf_config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    return ModelShape(
        num_layers=text.num_hidden_layers,
        num_q_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=_head_dim(text) or text.hidden_size // heads,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_positions=getattr(text, "max_position_embeddings", 2048),
        dtype_bytes=dtype_bytes,
        num_parameters=model.num_parameters(),
        layer_windows=_layer_windows(text),
        num_embeddings=_num_embeddings(model),
    )


def _head_dim(text: Any) -> int | None:
    """None where the config gives none, or one for each layer."""
    try:
        return getattr(text, "head_dim", None)
    except Exception:  # transformers' own, of configs whose layers differ
        return None


def _with_cache(shape: ModelShape, model: Any) -> ModelShape:
    """`shape`, with what the cache of `model`, an empty decoder, really keeps."""
    with quiet():
        layers = probe_cache(model)
    sizes = tuple(-(-layer.token_bytes // shape.dtype_bytes) for layer in layers)
    state_bytes = sum(layer.state_bytes for layer in layers)
    keeping = [layer for layer in layers if layer.token_bytes]
    if not keeping:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps no keys and values, only {state_bytes} bytes of state a "
            "sequence, so there is nothing to allocate by tokens: choose a model with attention"
        )
    heads, head_dim = max(e.num_heads for e in keeping), max(e.head_dim for e in keeping)
    is_plain = sizes == (2 * heads * head_dim,) * shape.num_layers
    return replace(
        shape,
        num_kv_heads=heads,
        head_dim=head_dim,
        layer_windows=shape.layer_windows if len(sizes) == shape.num_layers else (),
        layer_kv_sizes=() if is_plain else sizes,
        state_bytes=state_bytes,
    )


def _num_embeddings(model: Any) -> int:
    """`ModelShape.num_embeddings`; a weight that input and output share counts once."""
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Embedding)]
    layers.append(model.get_output_embeddings())
    weights = {id(layer.weight): layer.weight.numel() for layer in layers if layer is not None}
    return sum(weights.values())


def _layer_windows(text: Any) -> tuple[int | None, ...]:
    """`ModelShape.layer_windows`, by what the architecture's config says of its layers."""
    window = getattr(text, "sliding_window", None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return ()
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    windows = tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


def _random_config(config: ModelConfig) -> Any:
    try:
        hf_config = transformers.AutoConfig.for_model(config.family, **config.config)
    except ValueError as error:
        raise ValueError(f"model.family={config.family!r} is not known to transformers") from error
    text = hf_config.get_text_config()
    for name in ("initializer_range", "init_std"):
        if hasattr(text, name):
            setattr(text, name, config.initializer_range)
    return hf_config


def _checkpoint_config(config: ModelConfig) -> Any:
    if not config.path:
        raise ValueError("model=hub needs a checkpoint: add model.path=DIR_OR_ID")
    check_reachable(config.path)
    return transformers.AutoConfig.from_pretrained(config.path)


def _checkpoint_dtype(config: ModelConfig, hf_config: Any) -> torch.dtype:
    if config.dtype != "auto":
        return getattr(torch, config.dtype)  # type: ignore[no-any-return]
    stored = getattr(hf_config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _tokenizer(config: ModelConfig) -> Any | None:
    if config.path is None:
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(config.path)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
    ):  # weights alone are enough for token-id workloads
        return None


def _bind_attention(model: Any, shape: ModelShape) -> None:
    """Route the model's attention to ours and prove with two tokens that it arrives there."""
    architecture = type(model).__name__
    if not shape.is_plain:
        raise UnsupportedModelError(f"{architecture} {shape.unlike_plain}: {_ADVICE}")
    probe = AttentionStep.probe()
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False, kv_step=probe)
    except (TypeError, ValueError, AttentionRefusedError) as error:
        raise UnsupportedModelError(
            f"{architecture} cannot run on this engine ({error}): {_ADVICE}"
        ) from error
    calls = sorted(call.layer for call in probe.calls)
    if calls != list(range(shape.num_layers)):
        raise UnsupportedModelError(
            f"{architecture} has {shape.num_layers} layers but sent {len(calls)} of them through "
            f"the registered attention function, so its KV would bypass the pool: {_ADVICE}"
        )
    kv_shapes = {tuple(call.key.shape[1:]) for call in probe.calls}
    if kv_shapes != {(shape.num_kv_heads, shape.head_dim)}:
        raise UnsupportedModelError(
            f"{architecture} writes KV of (heads, head_dim) {sorted(kv_shapes)}, but the pool "
            f"holds {(shape.num_kv_heads, shape.head_dim)} for every layer: {_ADVICE}"
        )

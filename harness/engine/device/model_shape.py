"""What a model is, and how big, without building it.

Standard library and PyYAML only for the built-in families: a simulated run asks for a shape
and must not wait for torch.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from harness.numbers import integer

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with random weights, or a checkpoint.

    family: the architecture's `model_type` in transformers ("llama", "qwen2", "opt", ...).
    config: arguments of that architecture's transformers config.
    path: a checkpoint's folder or hub id; `family` and `config` are then not used.
    dtype: float32, bfloat16, float16, or "auto" (what the checkpoint was stored in).
    initializer_range: standard deviation of random weights. At 0.02, transformers' usual
        value, greedy output falls into a cycle and equality of tokens proves little.
    """

    name: str = "small"
    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    dtype: str = "float32"
    initializer_range: float = 0.06
    weight_seed: int = 0

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("model=hub needs a checkpoint: add model.path=DIR_OR_ID")
        if self.dtype not in DTYPE_BYTES and not (self.path is not None and self.dtype == "auto"):
            choices = ", ".join(DTYPE_BYTES)
            raise ValueError(f"model.dtype={self.dtype!r}: choose one of {choices}")


class LayerGroup(NamedTuple):
    """Layers that share block tables. window: as in `ModelShape.layer_windows`."""

    window: int | None
    layers: tuple[int, ...]

    @classmethod
    def merged(cls, groups: Sequence[LayerGroup]) -> LayerGroup:
        """All of them as one, which keeps KV as long as any of them needs it."""
        windows = [group.window for group in groups]
        longest = None if None in windows else max(w for w in windows if w is not None)
        return cls(longest, tuple(sorted(layer for group in groups for layer in group.layers)))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The figures of a decoder that memory and time depend on.

    max_positions: longest sequence the model can read, prompt and output together.
    num_parameters: weights as stored; tied embeddings count once.
    num_embeddings: those of them that embed tokens or positions, or are the output layer's.
    layer_windows: of each layer the tokens that a query reads, itself included, None where it
        reads everything; empty where no layer slides a window.
    layer_kv_sizes: of each layer the elements that it keeps of a token; empty where each keeps a
        key and a value of every KV head. A layer of 0 keeps none. Where it is given, num_kv_heads
        and head_dim are the most of any layer and of keys and values; of latents one head of the
        wider part.
    state_bytes: of a sequence, whatever its length.
    """

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    dtype_bytes: int
    num_parameters: int
    layer_windows: tuple[int | None, ...] = ()
    num_embeddings: int = 0
    layer_kv_sizes: tuple[int, ...] = ()
    state_bytes: int = 0

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            integer(getattr(self, name), name, 1)

    @property
    def num_layer_parameters(self) -> int:
        """Weights that every token is multiplied by."""
        return self.num_parameters - self.num_embeddings

    @property
    def is_plain(self) -> bool:
        """Every layer keeps a key and a value of every KV head, and nothing else is kept."""
        return not (self.layer_kv_sizes or self.state_bytes)

    @property
    def unlike_plain(self) -> str:
        """What is kept, where it is not plain."""
        state = f" and {self.state_bytes} bytes of state a sequence" if self.state_bytes else ""
        return (
            f"keeps {sum(self.kv_sizes)} elements a token in {len(self.kv_layers)} of "
            f"{self.num_layers} layers{state}, not a key and a value of every head in every layer, "
            "as the torch engine does"
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(self.kv_sizes) * self.dtype_bytes

    @property
    def kv_sizes(self) -> tuple[int, ...]:
        """Elements that each layer keeps of a token."""
        plain = 2 * self.num_kv_heads * self.head_dim
        return self.layer_kv_sizes or (plain,) * self.num_layers

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Those that keep any."""
        return tuple(layer for layer, size in enumerate(self.kv_sizes) if size)

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Layers that keep KV equally long, in groups of equal size, so that a page of one group
        can serve any other; one group where layers keep different amounts of a token."""
        layers_of: dict[int | None, list[int]] = {}
        windows = self.layer_windows or (None,) * len(self.kv_sizes)
        for layer in self.kv_layers:
            layers_of.setdefault(windows[layer], []).append(layer)
        if len(set(self.kv_sizes) - {0}) > 1:
            every = [LayerGroup(window, tuple(layers)) for window, layers in layers_of.items()]
            return (LayerGroup.merged(every),)
        size = math.gcd(*map(len, layers_of.values()))
        return tuple(
            LayerGroup(window, tuple(layers[first : first + size]))
            for window, layers in layers_of.items()
            for first in range(0, len(layers), size)
        )

    def splits_over(self, num_ranks: int) -> bool:
        """Every rank has as many heads, and whole KV heads: its part of them, or a copy of one.
        Layers that keep different amounts of a token are not split."""
        if num_ranks > 1 and len(set(self.kv_sizes) - {0}) > 1:
            return False
        fewer, more = sorted((num_ranks, self.num_kv_heads))
        return self.num_q_heads % num_ranks == 0 and more % fewer == 0

    def of_rank(self, num_ranks: int) -> ModelShape:
        """The same with the heads that each of `num_ranks` has. ValueError where they cannot be
        split so."""
        if not self.splits_over(num_ranks):
            possible = [n for n in range(1, self.num_q_heads + 1) if self.splits_over(n)]
            raise ValueError(
                f"engine.tensor_parallel={num_ranks} does not split the {self.num_q_heads} heads "
                f"({self.num_kv_heads} of keys and values) evenly: choose one of "
                f"{', '.join(map(str, possible))}"
            )
        return replace(
            self,
            num_q_heads=self.num_q_heads // num_ranks,
            num_kv_heads=max(1, self.num_kv_heads // num_ranks),
        )

    @property
    def weight_bytes(self) -> int:
        """Weights in the model's own dtype."""
        return self.num_parameters * self.dtype_bytes


_AT_LEAST_ONE = (
    "num_layers", "num_q_heads", "num_kv_heads", "head_dim", "hidden_size", "vocab_size",
    "max_positions",
)  # fmt: skip


def model_presets() -> tuple[str, ...]:
    """Names that `model=` takes."""
    folder = importlib.resources.files("conf") / "model"
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    )


def model_preset(name: str, **changes: Any) -> ModelConfig:
    """The preset conf/model/NAME.yaml with `changes` to its fields.

    Raises ValueError with the nearest names where there is no such preset.
    """
    if name not in (names := model_presets()):
        near = get_close_matches(name, names, n=3) or names
        raise ValueError(f"model={name!r} is not known: did you mean {', '.join(near)}?")
    text = (importlib.resources.files("conf") / "model" / f"{name}.yaml").read_text()
    return ModelConfig(**{**yaml.safe_load(text), **changes})


def model_shape(config: ModelConfig) -> ModelShape:
    """The shape of `config`, with no weights built.

    Families other than llama and opt, and checkpoints, ask transformers (a checkpoint's
    parameters are counted without memory behind them).
    """
    check_sizes(config.config)
    if config.path is None and config.family in _FORMULAS:
        return _FORMULAS[config.family](config.config, DTYPE_BYTES[config.dtype])
    from harness.engine.device.models import shape_from_transformers

    return shape_from_transformers(config)


def check_sizes(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a size in a model's configuration that is no whole number, or so large
    that a model of it could not even be described."""
    for name, most in _LARGEST.items():
        value = values.get(name)
        if value is not None and not isinstance(value, Sequence | Mapping):
            integer(value, name, 1, most)
            if not isinstance(value, int):
                raise ValueError(f"{name}={value!r} is not an integer")
        elif isinstance(value, str):
            raise ValueError(f"{name}={value!r} is not an integer")


_LARGEST: Mapping[str, int] = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**20,
    "num_key_value_heads": 2**20,
    "head_dim": 2**20,
    "hidden_size": 2**24,
    "intermediate_size": 2**26,
    "ffn_dim": 2**26,
    "word_embed_proj_dim": 2**24,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**40,
}


def _llama(c: Mapping[str, Any], dtype_bytes: int) -> ModelShape:
    hidden, layers, inner = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"]
    heads, vocab = c["num_attention_heads"], c["vocab_size"]
    kv_heads = c.get("num_key_value_heads") or heads
    head_dim = c.get("head_dim") or hidden // heads
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    if c.get("attention_bias", False):
        attention += head_dim * (heads + 2 * kv_heads) + hidden
    mlp = 3 * hidden * inner + (2 * inner + hidden if c.get("mlp_bias", False) else 0)
    embeddings = vocab * hidden * (1 if c.get("tie_word_embeddings", False) else 2)
    return ModelShape(
        num_layers=layers,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=c.get("max_position_embeddings", 2048),
        dtype_bytes=dtype_bytes,
        num_parameters=layers * (attention + mlp + 2 * hidden) + embeddings + hidden,
        num_embeddings=embeddings,
    )


def _opt(c: Mapping[str, Any], dtype_bytes: int) -> ModelShape:
    hidden, layers, inner = c["hidden_size"], c["num_hidden_layers"], c["ffn_dim"]
    heads, vocab, positions = (
        c["num_attention_heads"],
        c["vocab_size"],
        c["max_position_embeddings"],
    )
    projected = c.get("word_embed_proj_dim") or hidden
    attention = 4 * (hidden * hidden + hidden)
    mlp = 2 * hidden * inner + inner + hidden
    embeddings = vocab * projected + (positions + 2) * hidden
    projections = 2 * projected * hidden if projected != hidden else 0
    return ModelShape(
        num_layers=layers,
        num_q_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=positions,
        dtype_bytes=dtype_bytes,
        num_parameters=layers * (attention + mlp + 4 * hidden)
        + embeddings
        + projections
        + 2 * hidden,
        num_embeddings=embeddings,
    )


_FORMULAS = {"llama": _llama, "opt": _opt}

"""One attention function for every Hugging Face decoder.

Registered under `ATTENTION_NAME` in transformers' AttentionInterface, and on purpose not in
its AttentionMaskInterface: an unknown name skips building masks, a known one would run a
host-synchronising check every step. All state of a step travels in the `kv_step` keyword.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION_NAME = "kvarena"


class AttentionRefusedError(ValueError):
    """A layer asks for something that paged attention does not compute."""


class AttentionKernels(Protocol):
    """The kernel functions a step runs on; `kernels.backend.load` returns one."""

    def store_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, /
    ) -> None: ...

    def paged_attention(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def contiguous_attention(self, *args: Any, **kwargs: Any) -> Tensor: ...


class AttentionCall(NamedTuple):
    """What a layer asked of attention in a probe."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None
    softcap: float | None


class StoreTarget(NamedTuple):
    """A layer's caches (num_slots, kv_heads, head_dim), and each new token's slot, (T,) int64."""

    key_cache: Tensor
    value_cache: Tensor
    slots: Tensor


@dataclass(slots=True)
class AttentionStep:
    """What attention has to know about one ragged batch of S sequences and T tokens.

    caches: (key_cache, value_cache) of each layer, (num_slots, kv_heads, head_dim).
    group_of: each layer's group, which says what tables it goes by.
    block_tables: of each group, (S, pages) int32; None where `start_slots` says where each
        sequence's contiguous KV begins, (S,) int64.
    query_start_loc: (S + 1,) int32. seq_lens: (S,) int32, keys visible to the last query.
    slot_mappings: of each group, (T,) int64, where each new token's KV goes.
    """

    kernels: AttentionKernels | None
    caches: Sequence[tuple[Tensor, Tensor]]
    group_of: Sequence[int]
    page_size: int
    query_start_loc: Tensor
    seq_lens: Tensor
    slot_mappings: Sequence[Tensor]
    block_tables: Sequence[Tensor] | None = None
    start_slots: Tensor | None = None
    calls: list[AttentionCall] = field(default_factory=list)
    _stored: tuple[Tensor, Tensor] | None = None

    @classmethod
    def probe(
        cls, caches: Sequence[tuple[Tensor, Tensor]] = (), slots: Tensor | None = None
    ) -> AttentionStep:
        """A step that notes its calls and attends to nothing: each token is a sequence of length
        one. caches, slots: as of a real step, for callers that write into the caches themselves;
        without them nothing is kept from one call to the next."""
        nothing = torch.empty(0)
        slot_mappings = () if slots is None else (slots,)
        return cls(None, caches, (0,) * len(caches), 1, nothing, nothing, slot_mappings)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Write the new KV, then attend. query (T, Hq, D), key and value (T, Hkv, D)."""
        self.store(layer, key, value)
        return self.read(layer, query, scale=scale, window=window, softcap=softcap, out=out)

    def target(self, layer: int) -> StoreTarget:
        """Where the new KV of `layer` goes, for a kernel that writes it on its way."""
        return StoreTarget(*self.caches[layer], self.slot_mappings[self.group_of[layer]])

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write the new KV of `layer`, key and value (T, Hkv, D); tokens at slot -1 are skipped."""
        if self.kernels is not None:
            target = self.target(layer)
            self.kernels.store_kv(key, value, target.key_cache, target.value_cache, target.slots)
        elif self.caches:
            target = self.target(layer)
            target.key_cache[target.slots], target.value_cache[target.slots] = key, value
        else:
            self._stored = (key, value)

    def read(
        self,
        layer: int,
        query: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend to the sequences' KV, the new tokens' included, which were written before."""
        if self.kernels is None:
            return self._note(layer, query, scale, window, softcap)
        key_cache, value_cache = self.caches[layer]
        bounds = (self.query_start_loc, self.seq_lens)
        options = {"scale": scale, "window": window, "softcap": softcap, "out": out}
        if self.block_tables is None:
            return self.kernels.contiguous_attention(
                query, key_cache, value_cache, self.start_slots, *bounds, **options
            )
        table = self.block_tables[self.group_of[layer]]
        return self.kernels.paged_attention(
            query, key_cache, value_cache, table, self.page_size, *bounds, **options
        )

    def _note(
        self, layer: int, query: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """What a probe does for attention: a sequence of length one attends to its own value."""
        if self.caches:
            target = self.target(layer)
            key, value = target.key_cache[target.slots], target.value_cache[target.slots]
        else:
            assert self._stored is not None  # `store` comes before `read`
            key, value = self._stored
        copies = (query.clone(), key.clone(), value.clone())
        self.calls.append(AttentionCall(layer, *copies, scale, window, softcap))
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def kv_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kv_step: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: (1, H, T, D) in, (1, T, H, D) out."""
    if s_aux is not None:
        raise AttentionRefusedError("attention sinks (s_aux) are not supported")
    if query.shape[-1] != value.shape[-1]:
        raise AttentionRefusedError(
            f"key and value head sizes differ: {query.shape[-1]} and {value.shape[-1]}"
        )
    out = kv_step.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


AttentionInterface.register(ATTENTION_NAME, kv_attention)

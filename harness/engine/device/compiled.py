"""A model's own forward pass through torch.compile, with attention as one opaque operator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.engine.device.attention import AttentionStep
from harness.engine.device.kv_pool import KVPool
from kernels import backend

_LEAST = 2
"""A dimension of one (or none) is compiled for on its own: inputs have at least two of everything,
so that no step compiles anything again."""


class NotCompiledError(ValueError):
    """A model's forward pass cannot be traced whole."""


@torch.library.custom_op("kvarena::attend", mutates_args=("storage",))
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    storage: Tensor,
    slots: Tensor,
    table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    layer: int,
    kernels: str,
    page_size: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Write the new KV of place `layer` in `storage` (`KVPool.storage`), then attend. page_size 0
    reads sequences without a table, from the slots in `table` on. window, softcap: 0 for none.
    Arguments and result otherwise as of `AttentionStep.attend`."""
    loaded = _kernels(query.device.type, kernels)
    key_cache, value_cache = storage[layer].unbind()
    loaded.store_kv(key, value, key_cache, value_cache, slots)
    bounds = (query_start_loc, seq_lens)
    options: Any = {"scale": scale, "window": window or None, "softcap": softcap or None}
    options["out"] = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    caches = (key_cache, value_cache)
    attended: Tensor
    if page_size == 0:
        attended = loaded.contiguous_attention(query, *caches, table, *bounds, **options)
    else:
        attended = loaded.paged_attention(query, *caches, table, page_size, *bounds, **options)
    return attended


@attend.register_fake
def _(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@lru_cache
def _kernels(device_type: str, name: str) -> backend.AttentionBackend:
    return backend.load(device_type, name)


class _TracedStep:
    """What a layer asks of its step while it is traced; see `AttentionStep.attend`."""

    def __init__(
        self,
        storage: Tensor,
        slots: Sequence[Tensor],
        tables: Sequence[Tensor],
        query_start_loc: Tensor,
        seq_lens: Tensor,
        places: Sequence[tuple[int, int]],
        kernels: str,
        page_size: int,
    ) -> None:
        self.storage = storage
        self.slots = slots
        self.tables = tables
        self.bounds = (query_start_loc, seq_lens)
        self.places = places
        self.kernels = kernels
        self.page_size = page_size

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
    ) -> Tensor:
        group, place = self.places[layer]
        return attend(  # type: ignore[no-any-return]
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            self.storage,
            self.slots[group],
            self.tables[group],
            *self.bounds,
            place,
            self.kernels,
            self.page_size,
            scale,
            window or 0,
            softcap or 0.0,
        )


class CompiledModel:
    """`model`'s forward pass, compiled on its first call for steps of any size; made once for all
    pools that the model ever runs on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled = torch.compile(self._forward, fullgraph=True, dynamic=True)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        rows: Tensor,
        step: AttentionStep,
        pool: KVPool,
        kernels: str,
    ) -> Tensor:
        """Logits of `rows`, as of `ModelRunner.logits`. pool: what `step` is about. Raises
        NotCompiledError where the model cannot be traced."""
        num_rows = len(rows)
        tables = step.block_tables
        if tables is None:
            assert step.start_slots is not None  # one of the two says where sequences lie
            tables = (step.start_slots,)
        num_seqs = padded_seqs(len(ids), len(step.seq_lens))
        missing_seqs = num_seqs - len(step.seq_lens)
        arguments = (
            _grown(ids),
            _grown(positions),
            _grown(rows),
            pool.storage,
            [_grown(slots, filler=-1) for slots in step.slot_mappings],
            [_grown_table(table, num_seqs) for table in tables],
            torch.cat((step.query_start_loc, step.query_start_loc[-1:].expand(missing_seqs))),
            _grown(step.seq_lens, num_seqs),
            pool.places,
            kernels,
            step.page_size if step.block_tables is not None else 0,
        )
        try:
            logits: Tensor = self._compiled(*arguments)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise NotCompiledError(
                f"engine.compile=true: {type(self._model).__name__} cannot be traced whole by "
                f"torch.compile ({reason}): set engine.compile=false"
            ) from error
        return logits[:num_rows]

    def _forward(self, ids: Tensor, positions: Tensor, rows: Tensor, *of_step: Any) -> Tensor:
        logits: Tensor = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            kv_step=_TracedStep(*of_step),
        ).logits
        return logits[0]


def padded_seqs(num_tokens: int, num_seqs: int) -> int:
    """Sequences that a batch is padded to. As many sequences as tokens mean one token each to the
    kernels: a prompt's two tokens must not look so beside an empty sequence."""
    padded = max(num_seqs, _LEAST)
    looks_decoding = num_tokens != num_seqs and max(num_tokens, _LEAST) == padded
    return padded + 1 if looks_decoding else padded


def _grown(values: Tensor, least: int = _LEAST, *, filler: int = 0) -> Tensor:
    """`values` (n,) with at least `least` entries."""
    missing = least - len(values)
    return functional.pad(values, (0, missing), value=filler) if missing > 0 else values


def _grown_table(table: Tensor, num_seqs: int) -> Tensor:
    """A block table (S, pages), or start slots (S,), for `num_seqs` and at least two pages."""
    if table.dim() == 1:
        return _grown(table, num_seqs)
    rows, columns = num_seqs - table.shape[0], max(0, _LEAST - table.shape[1])
    return functional.pad(table, (0, columns, 0, rows))

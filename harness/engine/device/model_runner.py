"""Runs one forward pass of a decoder over a ragged batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from harness.engine.device.attention import AttentionStep
from harness.engine.device.batch import Batch
from harness.engine.device.compiled import CompiledModel
from harness.engine.device.kv_pool import KVPool
from harness.engine.device.models import LoadedModel
from harness.engine.device.staging import upload

_UNLIKE_SIZES = (151, 67, 211, 101)
"""Tokens, sampled rows, sequences and pages: no two alike, nor like a model's usual dimensions."""


class ModelRunner:
    """A model, its KV pool and the kernels that connect them.

    attention: "paged" reads through block tables, "contiguous" from each sequence's first
    slot on, which asks for an allocator that hands out consecutive pages. fused: use
    `harness.engine.device.lean` where the model allows it; `lean` says whether it did. compiled:
    the model's own forward pass, in place of both.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pool: KVPool,
        kernels: Any,
        *,
        attention: str = "paged",
        fused: bool = True,
        compiled: CompiledModel | None = None,
    ) -> None:
        if attention not in ("paged", "contiguous"):
            raise ValueError(f"attention={attention!r}: choose paged or contiguous")
        self.model = loaded.model
        self.pool = pool
        self.kernels = kernels
        self.attention = attention
        self.device = pool.storage.device
        self._compiled = compiled
        lean = loaded.lean if fused and compiled is None else None
        self.lean = lean.decoder(kernels.name) if lean else None

    def forward(self, batch: Batch, drawn: Tensor | None = None) -> Tensor:
        """Logits (sample rows, vocabulary); the KV of all tokens is written on the way. An input
        id below 0 stands for entry -1 - id of `drawn`, (entries,) int64 on the device."""
        ids, positions, rows, bounds, seq_lens, slots, tables = upload(
            (
                batch.input_ids,
                batch.positions,
                batch.sample_rows,
                batch.query_start_loc,
                batch.seq_lens,
                batch.slot_mapping,
                batch.block_table,
            ),
            self.device,
        )
        if drawn is not None:
            ids = take_drawn(ids, drawn)
        return self.logits(
            ids, positions, rows, self.attention_step(bounds, seq_lens, slots, tables)
        )

    def logits(self, ids: Tensor, positions: Tensor, rows: Tensor, step: AttentionStep) -> Tensor:
        """The forward pass on flat tensors: (T,) ids and positions, logits of `rows` of them."""
        if self._compiled is not None:
            return self._compiled(ids, positions, rows, step, self.pool, self.kernels.name)
        if self.lean is not None:
            return self.lean(ids, positions, rows, step)
        logits: Tensor = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            kv_step=step,
        ).logits
        return logits[0]

    def attention_step(
        self, bounds: Tensor, seq_lens: Tensor, slots: Tensor, tables: Tensor
    ) -> AttentionStep:
        """What attention has to know: query_start_loc, seq_lens, and of each group of layers the
        slot mapping, (G, T), and the block tables, (G, S, pages)."""
        contiguous = self.attention == "contiguous"
        return AttentionStep(
            kernels=self.kernels,
            caches=self.pool.caches,
            group_of=self.pool.group_of,
            page_size=self.pool.page_size,
            query_start_loc=bounds,
            seq_lens=seq_lens,
            slot_mappings=slots.unbind(),
            block_tables=None if contiguous else tables.unbind(),
            start_slots=tables[0, :, 0].long() * self.pool.page_size if contiguous else None,
        )

    def compile(self) -> None:
        """Let what compiles on its first step do so: a step of tokens that nobody keeps. Sizes that
        are equal here would be taken to be equal always."""
        tokens, rows, seqs, pages = _UNLIKE_SIZES
        num_groups = len(self.pool.groups)

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        step = self.attention_step(
            zeros(seqs + 1, dtype=torch.int32),
            zeros(seqs, dtype=torch.int32),
            zeros(num_groups, tokens) - 1,
            zeros(num_groups, seqs, pages, dtype=torch.int32),
        )
        self.logits(zeros(tokens), zeros(tokens), zeros(rows), step)

    def for_graphs(self, max_tokens: int) -> ModelRunner:
        """The same model on the same pool, with activation buffers for so many tokens that nobody
        else makes grow: a captured graph goes on using their addresses."""
        other = copy.copy(self)
        if self.lean is not None:
            other.lean = self.lean.with_own_buffers()
            other.lean.reserve(max_tokens, max_tokens)
        return other


def take_drawn(ids: Tensor, drawn: Tensor) -> Tensor:
    """`ids` (T,), those below 0 replaced by entry -1 - id of `drawn`, without a look from the
    host."""
    return torch.where(ids < 0, drawn[(-1 - ids).clamp_(min=0)], ids)

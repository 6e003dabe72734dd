"""Runs one forward pass of a decoder over a ragged batch."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from harness.engine.device.attention import AttentionStep
from harness.engine.device.batch import Batch
from harness.engine.device.kv_pool import KVPool
from harness.engine.device.models import LoadedModel


class ModelRunner:
    """A model, its KV pool and the kernels that connect them.

    attention: "paged" reads through block tables, "contiguous" from each sequence's first
    slot on, which asks for an allocator that hands out consecutive pages. fused: use
    `harness.engine.device.lean` where the model allows it; `lean` says whether it did.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pool: KVPool,
        kernels: Any,
        *,
        attention: str = "paged",
        fused: bool = True,
    ) -> None:
        if attention not in ("paged", "contiguous"):
            raise ValueError(f"attention={attention!r}: choose paged or contiguous")
        self.model = loaded.model
        self.pool = pool
        self.kernels = kernels
        self.attention = attention
        self.device = pool.storage.device
        self.lean = loaded.lean.decoder(kernels.name) if fused and loaded.lean else None

    def forward(self, batch: Batch) -> Tensor:
        """Logits (sample rows, vocabulary); the KV of all tokens is written on the way."""
        ids, positions = self._put(batch.input_ids), self._put(batch.positions)
        rows, step = self._put(batch.sample_rows), self._attention_step(batch)
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

    def _attention_step(self, batch: Batch) -> AttentionStep:
        contiguous = self.attention == "contiguous"
        tables = self._put(batch.block_table)
        return AttentionStep(
            kernels=self.kernels,
            caches=self.pool.caches,
            group_of=self.pool.group_of,
            page_size=self.pool.page_size,
            query_start_loc=self._put(batch.query_start_loc),
            seq_lens=self._put(batch.seq_lens),
            slot_mappings=self._put(batch.slot_mapping).unbind(),
            block_tables=None if contiguous else tables.unbind(),
            start_slots=tables[0, :, 0].long() * self.pool.page_size if contiguous else None,
        )

    def _put(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

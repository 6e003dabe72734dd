"""Runs the draft model of speculative decoding, over a pool of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.engine.device.batch import BatchBuilder
from harness.engine.device.kv_pool import KVPool
from harness.engine.device.lean.decoder import LeanDecoder
from harness.engine.device.model_runner import ModelRunner
from harness.engine.device.models import LoadedModel
from harness.engine.device.sampler import sample
from harness.engine.device.verify import draw_draft
from harness.engine.plan import Chunk, DraftChunk, DraftPlan


@dataclass(slots=True)
class Drafts:
    """What was proposed, by sequence. probs: (drafts, vocabulary), the distributions that drafts
    were drawn from; greedy ones have none."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    probs: dict[int, Tensor] = field(default_factory=dict)

    def fill(self, chunk: Chunk) -> Chunk:
        """`chunk` with its drafts in place."""
        if not chunk.num_drafts:
            return chunk
        known = chunk.token_ids[: len(chunk.token_ids) - chunk.num_drafts]
        return chunk._replace(token_ids=[*known, *self.token_ids[chunk.seq_id]])


class DraftRunner:
    """The draft model, its KV pool and its batches; the arguments are as of `TorchExecutor`."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        page_size: int,
        max_seqs: int,
        max_len: int,
        dtype: torch.dtype,
        kernels: Any,
        fused: bool = True,
    ) -> None:
        device = torch.device(loaded.model.device)
        self._pool = KVPool(loaded.shape, num_pages, page_size, dtype=dtype, device=device)
        self._batches = BatchBuilder(max_seqs, max_len, page_size)
        self._runner = ModelRunner(loaded, self._pool, kernels, fused=fused)
        self._kernels = kernels

    @property
    def lean(self) -> LeanDecoder | None:
        """The draft model's lean forward pass, if it has one."""
        return self._runner.lean

    @property
    def kv_bytes(self) -> int:
        """Size of the draft pool."""
        return self._pool.kv_bytes

    def propose(self, plan: DraftPlan) -> Drafts:
        """Compute what the draft model lacks of each sequence, then draft one token at a time,
        all sequences beside one another."""
        self._batches.free(plan.freed_seq_ids)
        self._batches.update(plan.table_updates)
        self._pool.copy(plan.copies, self._kernels)
        drafts = Drafts({chunk.seq_id: [] for chunk in plan.chunks})
        rows: dict[int, list[Tensor]] = {}
        for turn in range(max((chunk.num_drafts for chunk in plan.chunks), default=0)):
            going = [chunk for chunk in plan.chunks if chunk.num_drafts > turn]
            self._draft_one(going, turn, drafts, rows)
        drafts.probs.update({seq_id: torch.cat(each) for seq_id, each in rows.items()})
        return drafts

    def _draft_one(
        self,
        going: Sequence[DraftChunk],
        turn: int,
        drafts: Drafts,
        rows: dict[int, list[Tensor]],
    ) -> None:
        """The next draft of each of `going`."""
        step = tuple(
            Chunk(
                chunk.seq_id,
                chunk.start if turn == 0 else chunk.start + len(chunk.token_ids) + turn - 1,
                chunk.token_ids if turn == 0 else drafts.token_ids[chunk.seq_id][-1:],
                (chunk.sampling,),
            )
            for chunk in going
        )
        logits = self._runner.forward(self._batches.build(step))
        positions = [chunk.output_position + turn for chunk in going]
        greedy = sample(logits, [chunk.sampling for chunk in going], positions).token_ids
        drawing = [row for row, chunk in enumerate(going) if chunk.sampling.temperature > 0]
        if drawing:
            drawn = draw_draft(
                logits[torch.tensor(drawing, device=logits.device)],
                [going[row].sampling for row in drawing],
                [positions[row] for row in drawing],
            )
            for index, row in enumerate(drawing):
                greedy[row] = drawn.token_ids[index]
                rows.setdefault(going[row].seq_id, []).append(drawn.probs[index : index + 1])
        for chunk, token_id in zip(going, greedy, strict=True):
            drafts.token_ids[chunk.seq_id].append(token_id)

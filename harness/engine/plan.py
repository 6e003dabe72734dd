"""One engine step as data: what the scheduler decided and what the device answered.

The executor is the only consumer of a plan and the only producer of an outcome; nothing else
crosses the seam between policy and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from allocators.base import PageCopy
from harness.engine.memory_events import Extent
from harness.engine.request import SamplingParams
from harness.engine.scheduling.beam_search import Candidates

UNKNOWN_DRAFT = -1

PENDING_TOKEN = -2
"""Stands for the token that the step before draws for the same sequence, and that is not in yet:
the executor takes it from there."""


class Chunk(NamedTuple):
    """Tokens of one sequence to compute in this step.

    token_ids: the tokens at positions start, start + 1, ...; one for a plain decode.
    draws: one token is chosen from the last position's logits for each of these; several where
        a prompt branches into samples, none where the chunk does not reach the sequence's end.
    output_position: position in the output of what is chosen, for the random stream.
    num_candidates: of a beam, how many of the best next tokens are wanted in place of draws.
    num_drafts: the last so many of `token_ids` are drafts to be verified: the last position's
        logits and those before each draft decide how many are kept. true_ids: the tokens that
        verification takes as right, where the output is given beforehand. UNKNOWN_DRAFT stands for
    drafts that the executor's draft model is yet to propose.
    """

    seq_id: int
    start: int
    token_ids: Sequence[int]
    draws: tuple[SamplingParams, ...] = ()
    output_position: int = 0
    num_candidates: int = 0
    num_drafts: int = 0
    true_ids: Sequence[int] = ()


class TableUpdate(NamedTuple):
    """Block-table entries of a sequence from `first` on are now `page_ids`, in the table of one
    group of layers."""

    seq_id: int
    first: int
    page_ids: Sequence[int]
    group: int = 0


class DraftChunk(NamedTuple):
    """What the draft model does for one sequence: compute `token_ids` from position `start` on,
    then propose `num_drafts` tokens one after the other, the first of them at `output_position`.
    """

    seq_id: int
    start: int
    token_ids: Sequence[int]
    num_drafts: int
    sampling: SamplingParams
    output_position: int


class DraftPlan(NamedTuple):
    """The draft model's part of a step, on its own pool. admitted: for its ledger."""

    chunks: tuple[DraftChunk, ...]
    table_updates: tuple[TableUpdate, ...]
    freed_seq_ids: tuple[int, ...]
    copies: tuple[PageCopy, ...]
    admitted: tuple[Extent, ...]


class StepPlan(NamedTuple):
    """What the device has to do, in this order: free rows, update tables, save pages to the
    host, copy pages, restore pages from the host, then one forward.

    saves: source a page of the pool, destination one of the host pool; restores: the reverse.
    draft: what the draft model does before that forward, if there is one.
    """

    chunks: tuple[Chunk, ...]
    table_updates: tuple[TableUpdate, ...] = ()
    freed_seq_ids: tuple[int, ...] = ()
    copies: tuple[PageCopy, ...] = ()
    saves: tuple[PageCopy, ...] = ()
    restores: tuple[PageCopy, ...] = ()
    draft: DraftPlan | None = None


class StepOutcome(NamedTuple):
    """What came back, in plan order.

    token_ids: the model's own choices, one a draw; of a chunk with drafts, as many as were kept
        plus one.
    margins: best logit less second best, at each of them; empty where nothing was computed.
    duration_s: time the step took on the executor's clock.
    candidates: of the chunks that asked for some.
    num_accepted: drafts kept of each chunk that had some.
    device_s: time that the device worked on it. waited_s: time that the host did nothing but wait
        for it. Both as far as the executor knows.
    broadcast_bytes: what rank 0 sent to each of the other ranks that the model is split over.
    """

    token_ids: Sequence[int]
    margins: Sequence[float]
    duration_s: float
    candidates: Sequence[Candidates] = ()
    num_accepted: Sequence[int] = ()
    device_s: float = math.nan
    waited_s: float = 0.0
    broadcast_bytes: int = 0

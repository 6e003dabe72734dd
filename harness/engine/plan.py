"""One engine step as data: what the scheduler decided and what the device answered.

The executor is the only consumer of a plan and the only producer of an outcome; nothing else
crosses the seam between policy and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from allocators.base import PageCopy
from harness.engine.request import SamplingParams


class Chunk(NamedTuple):
    """Tokens of one sequence to compute in this step.

    token_ids: the tokens at positions start, start + 1, ...; one for a decode.
    samples: the chunk reaches the sequence's end, so its last position yields a token.
    sampling, position: how that token is chosen, and its position in the output (for the
        random stream).
    """

    seq_id: int
    start: int
    token_ids: Sequence[int]
    samples: bool
    sampling: SamplingParams
    output_position: int


class TableUpdate(NamedTuple):
    """Block-table entries of a sequence from `first` on are now `page_ids`."""

    seq_id: int
    first: int
    page_ids: Sequence[int]


class StepPlan(NamedTuple):
    """What the device has to do: free rows, update tables, copy pages, then one forward."""

    chunks: tuple[Chunk, ...]
    table_updates: tuple[TableUpdate, ...] = ()
    freed_seq_ids: tuple[int, ...] = ()
    copies: tuple[PageCopy, ...] = ()


class StepOutcome(NamedTuple):
    """What came back, for the sampling chunks in plan order.

    token_ids: the model's own choices.
    margins: best logit less second best, at each of them; empty where nothing was computed.
    duration_s: time the step took on the executor's clock.
    """

    token_ids: Sequence[int]
    margins: Sequence[float]
    duration_s: float

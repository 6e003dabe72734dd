"""What the scheduler tells measurement about memory, beyond what the device is told."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Refusal(NamedTuple):
    """Why the head of the queue was not given memory in a step.

    full: fewer pages are available than it needs beside what branches of running groups were
    promised, or it was itself preempted in this step.
    withheld: it would fit, but for the watermark.
    unplaced: as many pages are available as it needs, and the strategy refused all the same. It
    asked for `num_tables` block tables of `pages_each` pages.

    What it needs is counted from what it asked for, hits of a reuse index left aside: nothing
    that a strategy says of itself decides.
    """

    request_id: int
    kind: Literal["full", "withheld", "unplaced"]
    pages_each: int = 0
    num_tables: int = 1


class Extent(NamedTuple):
    """A sequence that was just given memory.

    final_len: positions it will compute, None if unknown. asked_len: tokens the allocator was
    asked to provide for. computed_len: leading tokens it found computed.
    """

    seq_id: int
    computed_len: int
    final_len: int | None
    asked_len: int

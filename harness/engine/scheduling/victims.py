"""Whom a preemption hits, where a running group needs pages that are not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from harness.engine.scheduling.sequence import SequenceGroup

VictimPolicy = Literal["latest", "longest", "least_progress", "cheapest"]

Choice = Callable[[Sequence[SequenceGroup]], SequenceGroup]


def latest(running: Sequence[SequenceGroup]) -> SequenceGroup:
    """Admitted last (PagedAttention, section 4.5; vLLM)."""
    return running[-1]


def longest(running: Sequence[SequenceGroup]) -> SequenceGroup:
    """Most tokens: the most memory comes back at once."""
    return max(reversed(running), key=lambda group: group.longest_len)


def least_progress(running: Sequence[SequenceGroup]) -> SequenceGroup:
    """Fewest output tokens so far."""
    return min(
        reversed(running), key=lambda group: sum(s.num_output_tokens for s in group.sequences)
    )


def cheapest(running: Sequence[SequenceGroup]) -> SequenceGroup:
    """Fewest tokens to compute again."""
    return min(reversed(running), key=lambda group: group.num_computed_tokens)


VICTIM_POLICIES: Mapping[VictimPolicy, Choice] = {
    "latest": latest,
    "longest": longest,
    "least_progress": least_progress,
    "cheapest": cheapest,
}
"""Ties go to the one admitted last."""

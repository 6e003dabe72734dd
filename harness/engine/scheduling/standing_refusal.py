"""What the head of the queue was told, for as long as it would be told the same."""

from __future__ import annotations

from allocators.base import KVCacheAllocator, Usage
from harness.engine.memory_events import Refusal
from harness.engine.scheduling.sequence import SequenceGroup


class StandingRefusal:
    """The last refusal of a waiting group, until `forget`.

    A queue that waits for memory would ask at every step. A strategy whose `refusals_stand`
    answers the same until something is given back, so it is not asked; where it commits or shares
    declared prefixes, what a group needs may shrink while it waits, and it is asked all the same.
    """

    def __init__(self, allocator: KVCacheAllocator) -> None:
        self._remembers = (
            allocator.refusals_stand
            and not allocator.commits
            and not allocator.shares_declared_prefix
        )
        self._group: SequenceGroup | None = None
        self._reason: tuple[Usage, Refusal] | None = None

    def holds_for(self, group: SequenceGroup) -> bool:
        """It was refused, and would be again."""
        return self._group is group

    def note(self, group: SequenceGroup) -> None:
        """It was just refused, beside others that run."""
        self._group = group if self._remembers else None
        self._reason = None

    def forget(self) -> None:
        """Memory was given back, or less is promised to others: it may be granted now."""
        self._group = self._reason = None

    def reason(self, usage: Usage) -> Refusal | None:
        """Why, if that was asked at the same `usage` before: other sequences may have grown."""
        return self._reason[1] if self._reason is not None and self._reason[0] == usage else None

    def note_reason(self, group: SequenceGroup, usage: Usage, reason: Refusal) -> None:
        """Why `group` was refused, at this usage."""
        if self._group is group:
            self._reason = usage, reason

"""Pages that groups need: to be admitted, to branch, to come back; and what is left to others."""

from __future__ import annotations

from collections import Counter

from allocators.base import KVCacheAllocator
from harness.engine.memory_events import Refusal
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.swap import TablePlace


class Demand:
    """Counts pages of the pool for whole groups; asks the allocator, and changes nothing.

    promised: pages that the branches of groups admitted already will write to first, by the
    group's order; whoever admits notes them here.
    """

    def __init__(
        self, allocator: KVCacheAllocator, estimator: LengthEstimator, watermark_pages: int
    ) -> None:
        self._allocator = allocator
        self._num_groups = len(allocator.layer_groups)
        self._estimator = estimator
        self._watermark_pages = watermark_pages
        self.promised: dict[int, int] = {}

    def expected_len(self, group: SequenceGroup) -> int:
        """The estimate of how long each of the group's sequences will get."""
        if group.admissions == 0:
            return self._estimator.expected_len(group.request)
        return self._estimator.revised_len(group.request, group.longest_len)

    def of_each(self, group: SequenceGroup) -> tuple[list[int], int]:
        """Tokens that an admission asks room for, and the estimate of all that will follow."""
        token_ids = group.live[0].token_ids
        expected_len = self.expected_len(group)
        if not group.is_branched:
            token_ids = token_ids[: group.num_prompt_tokens]
            if not self._allocator.forks_share:  # nobody may be able to grow where it lies
                expected_len = max(expected_len, group.longest_len)
        return token_ids, expected_len

    def pages_to_branch(self, group: SequenceGroup) -> int:
        """Pages that the other branches will need beyond what they share of the prompt: those
        of their estimate, or of what they know, and one that each writes to first."""
        if group.is_branched or not self._allocator.forks_share:
            return 0
        pages_for = self._allocator.pages_for
        shared = group.num_prompt_tokens // self._allocator.page_size
        own = pages_for(max(self.expected_len(group), group.longest_len + 1)) - shared
        return (len(group.live) - 1) * max(1, own) * self._num_groups

    def keep_free(self, is_idle: bool) -> int:
        """What an admission leaves to running groups: what was promised, and the watermark."""
        return sum(self.promised.values()) + self._watermark(is_idle)

    def explain_refusal(self, group: SequenceGroup, is_idle: bool, prefix_len: int) -> Refusal:
        """Why a group was not given memory. prefix_len: tokens that it would have shared with a
        held prefix."""
        usage = self._allocator.usage()
        available = usage.free + usage.cached
        needed = self.pages_to_branch(group) + sum(self.promised.values())
        pages_each, num_tables = self._tables_to_admit(group)
        if group.saved is None:
            needed += pages_each * num_tables
            needed -= prefix_len // self._allocator.page_size * self._num_groups
        else:
            needed += self._pages_to_return(group)
        request_id = group.request.request_id
        if needed > available:
            return Refusal(request_id, "full")
        if needed + self._watermark(is_idle) > available:
            return Refusal(request_id, "withheld")
        return Refusal(request_id, "unplaced", pages_each, num_tables)

    def _watermark(self, is_idle: bool) -> int:
        """It is for sequences that may still grow: with none running, or where each was given
        all it can need at its admission, it would only block the queue."""
        grows = self._allocator.grows_on_demand and not self._estimator.is_sufficient
        return 0 if is_idle or not grows else self._watermark_pages

    def _tables_to_admit(self, group: SequenceGroup) -> tuple[int, int]:
        """Pages of each block table that an admission asks for, and the number of tables."""
        token_ids, expected_len = self.of_each(group)
        num_branches = 1
        if not group.is_branched and not self._allocator.forks_share:
            num_branches = len(group.live)
        pages_each = self._allocator.pages_for(max(len(token_ids), expected_len))
        return pages_each, num_branches * self._num_groups

    def _pages_to_return(self, group: SequenceGroup) -> int:
        """To be swapped in, and to go on with what it was preempted over: what was saved, and room
        that was asked for beyond it."""
        assert group.saved is not None
        allocator = self._allocator
        reserved = min(group.asked_len, group.request.max_len)
        needed = len(group.saved.distinct)
        for sequence in group.sequences:
            if sequence.num_slots:
                had = allocator.pages_for(max(sequence.num_slots, reserved))
                saved = allocator.pages_for(sequence.num_computed_tokens)
                needed += (had - saved) * self._num_groups
        if not group.is_branched:
            return needed
        for sequence in group.live:
            had = allocator.pages_for(max(sequence.num_slots, reserved))
            added = allocator.pages_for(len(sequence.token_ids)) - had
            needed += max(0, added) * self._num_groups
        return needed + self._copies_on_return(group)

    def _copies_on_return(self, group: SequenceGroup) -> int:
        """Pages to copy because several branches will write to one that they share."""
        assert group.saved is not None
        if not self._allocator.forks_share:
            return 0
        writers: Counter[int] = Counter()
        for sequence in group.live:
            index, filled = divmod(sequence.num_slots, self._allocator.page_size)
            if filled and len(sequence.token_ids) > sequence.num_slots:
                for number in range(self._num_groups):
                    host_page = group.saved.host_pages.get(
                        TablePlace(number, sequence.seq_id, index)
                    )
                    if host_page is not None:
                        writers[host_page] += 1
        return sum(count - 1 for count in writers.values())

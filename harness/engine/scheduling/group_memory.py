"""Asks the allocator for what groups need, and notes in the step what the device must do."""

from __future__ import annotations

from collections.abc import Iterable

from allocators.base import NULL_PAGE, UNCHANGED, Allocation, KVCacheAllocator, PageCopy
from harness.engine.memory_events import Extent, Refusal
from harness.engine.plan import TableUpdate
from harness.engine.request import Request
from harness.engine.scheduling.demand import Demand
from harness.engine.scheduling.held_prefixes import HeldPrefixes
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.sequence import Sequence, SequenceGroup
from harness.engine.scheduling.standing_refusal import StandingRefusal
from harness.engine.scheduling.step_builder import StepBuilder
from harness.engine.scheduling.swap import HostPool, SavedPages, TablePlace


class GroupMemory:
    """The allocator as the scheduler sees it: whole groups, all or nothing.

    A group of several branches computes its prompt once, in its first live branch, the
    carrier. Where forks share, the others are forked from it then, and no admission touches
    the first own pages that they will take. Elsewhere every branch is given full room at
    admission (what the PagedAttention paper's Orca baselines did), and the prompt is copied.
    """

    def __init__(
        self,
        allocator: KVCacheAllocator,
        estimator: LengthEstimator,
        *,
        watermark_pages: int = 0,
        host_pages: int = 0,
        windows: tuple[int | None, ...] = (None,),
    ) -> None:
        self._allocator = allocator
        self._groups = allocator.layer_groups
        self.demand = Demand(allocator, estimator, watermark_pages)
        self._windows = windows
        self.host = HostPool(host_pages)
        self.prefixes = HeldPrefixes(allocator)
        self.freed_seq_ids: list[int] = []
        self.refusal = StandingRefusal(allocator)

    def admit(self, group: SequenceGroup, step: StepBuilder, is_idle: bool) -> bool:
        """Memory for all of a group's known tokens; False, and nothing changed, without it."""
        request, carrier = group.request, group.live[0]
        group.carrier = carrier
        group.asked_len = max(group.longest_len, self.demand.expected_len(group))
        token_ids, expected_len = self.demand.of_each(group)
        to_branch = self.demand.pages_to_branch(group)
        keep_free = self.demand.keep_free(is_idle) + to_branch
        if self.prefixes.serves(request):
            allocation = self.prefixes.fork(
                request, carrier.seq_id, token_ids, expected_len, keep_free
            )
        else:
            allocation = self._allocator.allocate(
                carrier.seq_id, token_ids, request.max_len, expected_len, keep_free
            )
        if allocation is None:
            return False
        given = [(carrier, allocation)]
        if not group.is_branched and not self._allocator.forks_share:
            for sibling in group.live[1:]:
                own = self._allocator.allocate(
                    sibling.seq_id, token_ids, request.max_len, expected_len, keep_free
                )
                if own is None:
                    for sequence, _ in given:
                        self._allocator.retract(sequence.seq_id)
                    return False
                given.append((sibling, own))
        self._note_admission(group, given, len(token_ids), step)
        if to_branch:
            self.demand.promised[group.order] = to_branch
        return True

    def grow(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Room for all that a running group knows by now; on False part of it may be there."""
        if not group.is_branched:
            if group.carrier.num_computed_tokens < group.num_prompt_tokens:
                return True
            if not self._branch(group, step):
                return False
        for sequence in group.live:
            missing = len(sequence.token_ids) - sequence.num_slots
            if missing > 0 and not self.extend(sequence, missing, step):
                return False
        if self.demand.promised.pop(group.order, None):
            self.refusal.forget()
        return True

    def extend(self, sequence: Sequence, num_tokens: int, step: StepBuilder) -> bool:
        """Room for so many tokens more of one sequence."""
        allocation = self._allocator.append(sequence.seq_id, num_tokens)
        if allocation is None:
            return False
        sequence.num_slots += num_tokens
        if allocation is not UNCHANGED:
            step.note_change(sequence.seq_id, self._groups, allocation)
        return True

    def rebranch(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Carry out a group's last beam step."""
        allocation = self._allocator.rebranch(group.parents)
        if allocation is None:
            return False
        if allocation.first_changed != UNCHANGED.first_changed:
            self.refusal.forget()
        group.parents.clear()
        step.copies.add(allocation.copies)
        for sequence in group.live:
            step.note_tables(sequence.seq_id, self._groups, allocation.first_changed or 0)
        return True

    def shrink(self, sequence: Sequence) -> list[TableUpdate]:
        """Give back the room of rejected drafts; what the tables lost."""
        self.refusal.forget()
        seq_id = sequence.seq_id
        before = [len(group.block_table(seq_id)) for group in self._groups]
        self._allocator.truncate(seq_id, sequence.num_computed_tokens)
        sequence.num_slots = sequence.num_computed_tokens
        after = [len(group.block_table(seq_id)) for group in self._groups]
        return [
            TableUpdate(seq_id, length, (), index)
            for index, length in enumerate(after)
            if length < before[index]
        ]

    def release_windows(self, sequence: Sequence) -> list[TableUpdate]:
        """Give back whole pages that a group's window has left behind; the tables' changes."""
        seq_id, updates = sequence.seq_id, []
        for index, (group, window) in enumerate(zip(self._groups, self._windows, strict=True)):
            if window is None:
                continue
            upto = sequence.num_computed_tokens - window + 1
            first = group.sequences[seq_id].num_released
            if upto // self._allocator.page_size > first:
                self.refusal.forget()
                group.release(seq_id, upto)
                table = group.block_table(seq_id)
                if table[first] == NULL_PAGE:
                    updates.append(TableUpdate(seq_id, first, tuple(table[first:]), index))
        return updates

    def free(self, group: SequenceGroup) -> None:
        """Give back all that a group holds."""
        self.refusal.forget()
        self.demand.promised.pop(group.order, None)
        for sequence in group.sequences:
            if sequence.num_slots:
                self.free_sequence(sequence)

    def free_sequence(self, sequence: Sequence) -> None:
        """Give back what one branch holds."""
        self.refusal.forget()
        self._allocator.free(sequence.seq_id)
        self.freed_seq_ids.append(sequence.seq_id)
        sequence.lose_memory()

    def forget_freed(self, seq_ids: set[int]) -> None:
        """These were given memory and lost it in one step: the device never knew of them."""
        if seq_ids:
            self.freed_seq_ids = [i for i in self.freed_seq_ids if i not in seq_ids]

    def swap_out(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Save a group to the host and give its pages up; False where too few host pages are
        left. Pages that are yet to be filled by copies of this step are saved from where these
        copies read: saves come first."""
        holders = [sequence for sequence in group.sequences if sequence.num_slots]
        saved: dict[TablePlace, int] = {}
        for sequence in holders:
            num_pages = self._allocator.pages_for(sequence.num_computed_tokens)
            for number, layers in enumerate(self._groups):
                table = layers.block_table(sequence.seq_id)
                for index in range(num_pages):
                    if table[index] != NULL_PAGE:
                        saved[TablePlace(number, sequence.seq_id, index)] = table[index]
        pages = list(dict.fromkeys(saved.values()))
        host_pages = self.host.take(len(pages))
        if host_pages is None:
            return False
        seq_ids = [sequence.seq_id for sequence in holders]
        self.refusal.forget()
        if self._allocator.swap_out(seq_ids) is None:
            self.host.put_back(host_pages)
            return False
        host_page_of = dict(zip(pages, host_pages, strict=True))
        step.saves += [
            PageCopy(step.copies.origin(page), host) for page, host in host_page_of.items()
        ]
        group.saved = SavedPages({place: host_page_of[page] for place, page in saved.items()})
        self.freed_seq_ids += seq_ids
        self.demand.promised.pop(group.order, None)
        return True

    def swap_in(self, group: SequenceGroup, step: StepBuilder, is_idle: bool) -> bool:
        """Bring a saved group back, with room for what it had no room for when it left; False,
        and nothing changed for the device, where there is none."""
        assert group.saved is not None
        holders = [sequence for sequence in group.sequences if sequence.num_slots]
        seq_ids = [sequence.seq_id for sequence in holders]
        to_branch = self.demand.pages_to_branch(group)
        to_keep = self.demand.keep_free(is_idle) + to_branch
        usage = self._allocator.usage()
        needed = self._allocator.pages_to_swap_in(seq_ids)
        if usage.free + usage.cached < needed + to_keep:  # before a cache is evicted in vain
            return False
        allocation = self._allocator.swap_in(seq_ids)
        if allocation is None:
            return False
        usage = self._allocator.usage()
        if usage.free + usage.cached < to_keep or not self._extend_restored(group):
            self._allocator.retract_swap_in(seq_ids)
            self.refusal.forget()
            return False
        step.copies.add(allocation.copies)
        restored = {
            self._groups[place.group].block_table(place.seq_id)[place.page_index]: host
            for place, host in group.saved.host_pages.items()
        }
        step.restores += [PageCopy(host, page) for page, host in restored.items()]
        for sequence in holders:
            step.admitted.append(self._extent(sequence, sequence.num_computed_tokens))
            step.note_tables(sequence.seq_id, self._groups, 0)
        self.host.put_back(group.saved.distinct)
        group.saved = None
        if to_branch:
            self.demand.promised[group.order] = to_branch
        return True

    def _extend_restored(self, group: SequenceGroup) -> bool:
        """Room for the tokens that a group's preemption was about. Pages that `append` would
        have copied are restored whole from the host instead."""
        if not group.is_branched:
            return True
        for sequence in group.live:
            missing = len(sequence.token_ids) - sequence.num_slots
            if missing > 0:
                if self._allocator.append(sequence.seq_id, missing) is None:
                    return False
                sequence.num_slots += missing
        return True

    def discard_saved(self, group: SequenceGroup) -> None:
        """Give up what was saved of a group; it is to be computed again."""
        self.refusal.forget()
        assert group.saved is not None
        for sequence in group.sequences:
            if sequence.num_slots:
                self._allocator.discard_swapped(sequence.seq_id)
                sequence.lose_memory()
        self.host.put_back(group.saved.distinct)
        group.saved = None

    def drop_prefix(self, users: Iterable[Request]) -> bool:
        """Give back a held prefix that none of `users` declares; False if there is none."""
        holder_id = self.prefixes.drop(users)
        if holder_id is None:
            return False
        self.refusal.forget()
        self.freed_seq_ids.append(holder_id)
        return True

    def is_unplaceable(self, group: SequenceGroup, is_idle: bool) -> bool:
        """A refused group would be refused by an idle pool as well."""
        needed = self._allocator.pages_for(group.asked_len)
        return is_idle or needed > self._allocator.max_sequence_pages

    def explain_refusal(self, group: SequenceGroup, is_idle: bool) -> Refusal:
        """Why the head of the queue was not given memory."""
        usage = self._allocator.usage()
        reason = self.refusal.reason(usage)
        if reason is None:
            prefix_len = self.prefixes.serves(group.request) and group.request.shared_prefix_len
            reason = self.demand.explain_refusal(group, is_idle, prefix_len)
            self.refusal.note_reason(group, usage, reason)
        return reason

    def _branch(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Let every live branch go on from the computed prompt."""
        carrier, prompt_len = group.carrier, group.num_prompt_tokens
        siblings = [sequence for sequence in group.live if sequence is not carrier]
        if self._allocator.forks_share:
            expected_len = self.demand.expected_len(group)
            for sibling in siblings:
                if sibling.num_slots:  # forked before the last refusal
                    continue
                allocation = self._allocator.fork(
                    carrier.seq_id, sibling.seq_id, group.request.max_len, expected_len
                )
                if allocation is None:
                    return False
                sibling.num_slots = prompt_len
                sibling.inherit(prompt_len)
                step.admitted.append(self._extent(sibling, prompt_len))
                step.note_change(sibling.seq_id, self._groups, allocation)
        else:
            parents = {sibling.seq_id: carrier.seq_id for sibling in siblings}
            moved = self._allocator.rebranch(parents)
            if moved is None:
                return False
            if moved.first_changed != UNCHANGED.first_changed:
                self.refusal.forget()
            step.copies.add(moved.copies)
            for sibling in siblings:
                sibling.inherit(prompt_len)
                step.inherited.append((sibling.seq_id, prompt_len))
                step.note_tables(sibling.seq_id, self._groups, moved.first_changed or 0)
        group.is_branched = True
        if carrier.finished:
            self.free_sequence(carrier)
        return True

    def _note_admission(
        self,
        group: SequenceGroup,
        given: list[tuple[Sequence, Allocation]],
        num_slots: int,
        step: StepBuilder,
    ) -> None:
        for sequence, allocation in given:
            sequence.num_slots = num_slots
            num_cached = allocation.num_cached_tokens if sequence is group.carrier else 0
            sequence.num_computed_tokens = num_cached
            group.num_cached_tokens += max(0, num_cached - sequence.furthest_computed)
            step.admitted.append(self._extent(sequence, num_cached))
            step.note_change(sequence.seq_id, self._groups, allocation)

    @staticmethod
    def _extent(sequence: Sequence, num_computed: int) -> Extent:
        return Extent(sequence.seq_id, num_computed, sequence.final_len, sequence.group.asked_len)

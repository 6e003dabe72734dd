"""Paged allocation whose sequences share pages and copy them on the first write
(PagedAttention; Kwon et al., SOSP 2023, section 4.4)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from allocators.base import NULL_PAGE, Allocation, PageCopy, SequenceState
from allocators.page_pool import PagePool
from allocators.paged import Paged


class PagedCopyOnWrite(Paged):
    """`paged`, and a fork shares every written page by reference count.

    The only shared page that an append ever writes to is the partly filled one that holds the
    next position: `truncate` gives shared pages past the new length back, estimate or not.
    Copying it takes a page, so a sequence with an estimate may still be refused that one.
    """

    name: ClassVar[str] = "paged_cow"
    shares_pool: ClassVar[bool] = True
    forks_share: ClassVar[bool] = True
    shares_declared_prefix: ClassVar[bool] = True

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool)
        self._num_swaps = 0

    def pages_to_append(self, seq_id: int, num_tokens: int) -> int:
        sequence = self.sequences[seq_id]
        table = sequence.page_ids
        index = sequence.length // self.page_size
        is_shared = index < len(table) and table[index] in self.pool.extra_refs
        return super().pages_to_append(seq_id, num_tokens) + is_shared

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        table = sequence.page_ids
        index = sequence.length // self.page_size
        if index < len(table) and table[index] in self.pool.extra_refs:
            return self._append_to_copy(sequence, index, num_tokens)
        return super().append(seq_id, num_tokens)

    def _append_to_copy(
        self, sequence: SequenceState, index: int, num_tokens: int
    ) -> Allocation | None:
        table = sequence.page_ids
        new_len = sequence.length + num_tokens
        missing = max(0, self.pages_for(new_len) - len(table))
        pages = self._take(missing + 1)
        if pages is None:
            return None
        source = table[index]
        table[index] = pages[0]
        table += pages[1:]
        sequence.length = new_len
        self._give_back([source])
        return Allocation(0, (PageCopy(source, pages[0]),), index)

    def pages_to_fork(self, parent_id: int, max_len: int, expected_len: int) -> int:
        reserved = self.pages_for(min(expected_len, max_len))
        return max(0, reserved - self.pages_for(self.sequences[parent_id].length))

    def pages_to_swap_in(self, seq_ids: Sequence[int]) -> int:
        return len(set(self._pages_swapped_out(seq_ids)))

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        """Start `child_id` on the parent's pages; only what the estimate adds is taken."""
        parent = self.sequences[parent_id]
        self.check_new(child_id, range(parent.length))
        own = self._take(self.pages_to_fork(parent_id, max_len, expected_len))
        if own is None:
            return None
        count = self.pages_for(parent.length)
        table = parent.page_ids[:count]
        self.pool.share(table[parent.num_released :])
        child = SequenceState(table + own, parent.length, max_len, expected_len)
        child.num_released = parent.num_released
        self.sequences[child_id] = child
        return Allocation(parent.length)

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        """Let each key share its value's pages: nothing is copied now, no room is needed."""
        length = self._rebranch_length(parents)
        count = self.pages_for(length)
        first_changed = sys.maxsize
        moves: list[tuple[SequenceState, list[int], int]] = []
        for child_id, parent_id in parents.items():
            if child_id != parent_id:
                parent = self.sequences[parent_id]
                table = parent.page_ids[:count]
                self.pool.share(table[parent.num_released :])
                child = self.sequences[child_id]
                first_changed = min(first_changed, _first_difference(child.page_ids, table))
                moves.append((child, table, parent.num_released))
        for child, table, num_released in moves:
            dropped = child.page_ids[child.num_released : count]
            child.page_ids[:count] = table
            child.num_released = num_released
            self._give_back(dropped)
        return Allocation(length, (), first_changed)

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        """Give the pages up, remembering which of them these sequences share."""
        outcome = super().swap_out(seq_ids)
        self._num_swaps += 1
        for seq_id in seq_ids:
            # Page ids will be in use again by then: name these after the swap that they left in.
            state = self._swapped[seq_id]
            base = self._num_swaps * self.pool.num_pages
            state.page_ids = [page if page == NULL_PAGE else base + page for page in state.page_ids]
        return outcome

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        """Room for all; pages that left together and were shared are shared again."""
        states = [self._swapped_state(seq_id) for seq_id in seq_ids]
        references = self._pages_swapped_out(seq_ids)
        names = dict.fromkeys(references)
        pages = self._take(len(names))
        if pages is None:
            return None
        page_of = dict(zip(names, pages, strict=True))
        for page, count in Counter(references).items():
            self.pool.share([page_of[page]] * (count - 1))
        for seq_id, state in zip(seq_ids, states, strict=True):
            state.page_ids = [page_of.get(page, NULL_PAGE) for page in state.page_ids]
            self.sequences[seq_id] = self._swapped.pop(seq_id)
        return Allocation()

    def _pages_swapped_out(self, seq_ids: Sequence[int]) -> list[int]:
        """What these sequences held when they left, a shared page once for each of them."""
        states = [self._swapped_state(seq_id) for seq_id in seq_ids]
        return [page for state in states for page in state.page_ids[state.num_released :]]

    def _pages_kept(self, sequence: SequenceState, new_len: int) -> int:
        needed = self.pages_for(new_len)
        kept = super()._pages_kept(sequence, new_len)
        for index in range(needed, min(kept, len(sequence.page_ids))):
            if self._is_frozen(sequence.page_ids[index]):
                return index
        return kept

    def _is_frozen(self, page: int) -> bool:
        """Whether others rely on what the page holds."""
        return page in self.pool.extra_refs

    def _give_back(self, pages: Sequence[int]) -> None:
        self.pool.put_back(self.pool.drop(pages))


def _first_difference(table: Sequence[int], other: Sequence[int]) -> int:
    """The first index at which the tables differ, as far as both go."""
    return next(
        (index for index, (a, b) in enumerate(zip(table, other, strict=False)) if a != b),
        min(len(table), len(other)),
    )

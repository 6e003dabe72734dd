"""One allocator a group of layers, over one shared pool.

Layers that slide a window have no more use for pages that full-attention layers still read. Each
group of layers with the same window therefore has block tables of its own; a page holds the KV of
one group, and goes to whichever group needs it (as in vLLM's hybrid KV cache manager and Jenga;
Zhang et al., SOSP 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from allocators.base import UNCHANGED, Allocation, KVCacheAllocator, PageCopy, Usage


class LayerGroups(KVCacheAllocator):
    """Drives `groups`, new allocators alike over one pool, as one: all of them, or none.

    Every group holds the same sequences with the same lengths; their tables differ in the pages,
    and in how much `release` gave back. `block_table` is that of the first group, `pages_for`
    and `max_sequence_pages` are of each group, all other page counts of the pool. Released is
    by group, through `layer_groups`. Raises ValueError for a strategy that needs a whole pool.
    """

    def __init__(self, groups: Sequence[KVCacheAllocator]) -> None:
        first = groups[0]
        super().__init__(first.pool)
        if not first.shares_pool:
            raise ValueError(f"{first.name} cannot share its pool with other groups of layers")
        for index, group in enumerate(groups[1:], start=1):
            group.join(first, index)
        self._groups = tuple(groups)
        self.sequences = first.sequences

    @property
    def layer_groups(self) -> tuple[KVCacheAllocator, ...]:
        return self._groups

    @property
    def commits(self) -> bool:
        return self._groups[0].commits

    @property
    def grows_on_demand(self) -> bool:  # type: ignore[override]
        return self._groups[0].grows_on_demand

    @property
    def refusals_stand(self) -> bool:  # type: ignore[override]
        return all(group.refusals_stand for group in self._groups)

    @property
    def labelled_options(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._groups[0].labelled_options

    @property
    def forks_share(self) -> bool:  # type: ignore[override]
        return self._groups[0].forks_share

    @property
    def shares_declared_prefix(self) -> bool:  # type: ignore[override]
        return self._groups[0].shares_declared_prefix

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        """A prefix counts as cached as far as every group has it."""
        limit = self._common_hit(token_ids)
        while True:
            given: list[Allocation] = []
            needed = [g.pages_needed_from(token_ids, expected_len, limit) for g in self._groups]
            for index, group in enumerate(self._groups):
                kept = keep_free + sum(needed[index + 1 :])
                one = group.allocate_from(seq_id, token_ids, max_len, expected_len, kept, limit)
                if one is None:
                    self._retract_first(index, seq_id)
                    return None
                given.append(one)
            hits = {one.num_cached_tokens for one in given}
            if len(hits) == 1:
                return Allocation(hits.pop(), _copies(given), 0)
            # what one group found, another evicted to make room, or could not copy
            self._retract_first(len(given), seq_id)
            limit = min(hits) // self.page_size * self.page_size

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        if not self._has(sum(g.pages_to_append(seq_id, num_tokens) for g in self._groups)):
            return None
        given = [self._granted(group.append(seq_id, num_tokens)) for group in self._groups]
        if all(one is UNCHANGED for one in given):
            return UNCHANGED
        return Allocation(0, _copies(given), _first_changed(given))

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        needed = [g.pages_to_fork(parent_id, max_len, expected_len) for g in self._groups]
        if not self._has(sum(needed)):
            return None
        given = [
            self._granted(group.fork(parent_id, child_id, max_len, expected_len))
            for group in self._groups
        ]
        return Allocation(given[0].num_cached_tokens, _copies(given), 0)

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        given = [self._granted(group.rebranch(parents)) for group in self._groups]
        return Allocation(given[0].num_cached_tokens, _copies(given), _first_changed(given))

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        self._each(lambda group: group.commit(seq_id, token_ids))

    def truncate(self, seq_id: int, new_len: int) -> None:
        self._each(lambda group: group.truncate(seq_id, new_len))

    def release(self, seq_id: int, upto: int) -> None:
        self._each(lambda group: group.release(seq_id, upto))

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        self._each(lambda group: self._granted(group.swap_out(seq_ids)))
        return UNCHANGED

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        if not self._has(self.pages_to_swap_in(seq_ids)):
            return None
        self._each(lambda group: self._granted(group.swap_in(seq_ids)))
        return Allocation()

    def retract_swap_in(self, seq_ids: Sequence[int]) -> None:
        self._each(lambda group: group.retract_swap_in(seq_ids))

    def pages_to_swap_in(self, seq_ids: Sequence[int]) -> int:
        return sum(group.pages_to_swap_in(seq_ids) for group in self._groups)

    def retract(self, seq_id: int) -> None:
        self._each(lambda group: group.retract(seq_id))

    def discard_swapped(self, seq_id: int) -> None:
        self._each(lambda group: group.discard_swapped(seq_id))

    def free(self, seq_id: int) -> None:
        self._each(lambda group: group.free(seq_id))

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self._groups[0].block_table(seq_id)

    def usage(self) -> Usage:
        return self._groups[0].usage()

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        limit = self._common_hit(token_ids)
        return sum(g.pages_needed_from(token_ids, expected_len, limit) for g in self._groups)

    @property
    def max_sequence_pages(self) -> int:
        return self._groups[0].max_sequence_pages // len(self._groups)

    def mapped_pages(self) -> set[int]:
        return set().union(*(group.mapped_pages() for group in self._groups))

    def check_integrity(self) -> None:
        mapped = [group.mapped_pages() for group in self._groups]
        assert sum(map(len, mapped)) == len(self.mapped_pages()), "groups map one page twice"
        usage = self._groups[0].usage()
        assert sum(usage) == self.pool.num_pages, f"{usage} is not {self.pool.num_pages} pages"
        assert len(self.mapped_pages()) == usage.mapped, f"tables and {usage} disagree"
        lengths = [{s: each.length for s, each in g.sequences.items()} for g in self._groups]
        assert all(each == lengths[0] for each in lengths), f"groups disagree: {lengths}"

    def _common_hit(self, token_ids: Sequence[int]) -> int:
        return min(group.num_cached(token_ids) for group in self._groups)

    def _has(self, num_pages: int) -> bool:
        usage = self._groups[0].usage()
        return num_pages <= usage.free + usage.cached

    def _retract_first(self, count: int, seq_id: int) -> None:
        for group in self._groups[:count]:
            group.retract(seq_id)

    def _each(self, act: Callable[[KVCacheAllocator], object]) -> None:
        for group in self._groups:
            act(group)

    @staticmethod
    def _granted(outcome: Allocation | None) -> Allocation:
        if outcome is None:
            raise RuntimeError(
                "one group of layers was refused what others were given: `pages_to_append`, "
                "`pages_to_fork` and `pages_to_swap_in` must say all that these calls take, and "
                "`rebranch` and `swap_out` may not refuse"
            )
        return outcome


def _first_changed(given: Sequence[Allocation]) -> int | None:
    entries = [one.first_changed for one in given if one.first_changed is not None]
    return min(entries) if len(entries) == len(given) else None


def _copies(given: Sequence[Allocation]) -> tuple[PageCopy, ...]:
    """All of their copies. A later group may have been given a page that an earlier one copies
    from: all sources are read before any destination is written."""
    return tuple(copy for one in given for copy in one.copies)

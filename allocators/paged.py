"""Paged allocation on demand (PagedAttention; Kwon et al., SOSP 2023, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from allocators.base import (
    NULL_PAGE,
    UNCHANGED,
    Allocation,
    KVCacheAllocator,
    SequenceState,
    Usage,
)


class Paged(KVCacheAllocator):
    """Any free page serves any sequence; pages are taken as tokens arrive.

    With an estimate (`expected_len` > 0) the pages for it are taken at once and kept until the
    sequence ends: placement is paged all the same.
    """

    name: ClassVar[str] = "paged"
    shares_pool: ClassVar[bool] = True
    refusals_stand: ClassVar[bool] = True

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        self.check_new(seq_id, token_ids)
        length = len(token_ids)
        wanted = max(length, min(expected_len, max_len))
        pages = self.pool.take(-(-wanted // self.page_size), keep_free)
        if pages is None:
            return None
        self.sequences[seq_id] = SequenceState(pages, length, max_len, expected_len)
        return _FRESH

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        if num_tokens < 1:
            raise ValueError(f"cannot append {num_tokens} tokens to sequence {seq_id}")
        new_len = sequence.length + num_tokens
        table = sequence.page_ids
        num_mapped = len(table)
        missing = -(-new_len // self.page_size) - num_mapped
        if missing <= 0:
            sequence.length = new_len
            return UNCHANGED
        pages = self._take(missing)
        if pages is None:
            return None
        table += pages
        sequence.length = new_len
        return Allocation(0, (), num_mapped)

    def free(self, seq_id: int) -> None:
        sequence = self.sequences[seq_id]
        del self.sequences[seq_id]
        table = sequence.page_ids
        self._give_back(table[sequence.num_released :] if sequence.num_released else table)

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.sequences[seq_id].page_ids

    def usage(self) -> Usage:
        free = self.pool.num_free
        return Usage(self.pool.num_pages - free, 0, free)

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Forget tokens from `new_len` on; pages past them and past the estimate go back."""
        sequence = self.sequences[seq_id]
        self._check_truncation(seq_id, sequence, new_len)
        kept = self._pages_kept(sequence, new_len)
        dropped = sequence.page_ids[kept:]
        del sequence.page_ids[kept:]
        sequence.length = new_len
        self._give_back(dropped)

    def release(self, seq_id: int, upto: int) -> None:
        sequence = self.sequences[seq_id]
        first = sequence.num_released
        last = min(upto, sequence.length) // self.page_size
        if last > first:
            table = sequence.page_ids
            pages = table[first:last]
            table[first:last] = [NULL_PAGE] * (last - first)
            sequence.num_released = last
            self._give_back(pages)

    def check_integrity(self) -> None:
        super().check_integrity()
        self.pool.check_integrity(self._held_pages())
        for seq_id, sequence in self.sequences.items():
            table, released = sequence.page_ids, sequence.num_released
            assert len(table) * self.page_size >= sequence.length, f"sequence {seq_id} lacks room"
            assert all((page == NULL_PAGE) == (i < released) for i, page in enumerate(table)), (
                f"sequence {seq_id} has released {released} pages, its table says {table}"
            )
        self._check_references()

    def _check_references(self) -> None:
        """Compare the pool's reference counts with the block tables."""
        counts: dict[int, int] = {}
        for sequence in self.sequences.values():
            for page in sequence.page_ids[sequence.num_released :]:
                counts[page] = counts.get(page, 0) + 1
        extra = {page: count - 1 for page, count in counts.items() if count > 1}
        assert extra == self.pool.extra_refs, f"tables share {extra}, not {self.pool.extra_refs}"

    def _pages_kept(self, sequence: SequenceState, new_len: int) -> int:
        """Leading pages of the table that outlive a truncation."""
        return self.pages_for(max(new_len, min(sequence.expected_len, sequence.max_len)))

    def _held_pages(self) -> set[int]:
        return self.mapped_pages()

    def _take(self, count: int) -> list[int] | None:
        return self.pool.take(count)

    def _give_back(self, pages: Sequence[int]) -> None:
        self.pool.put_back(pages)


_FRESH = Allocation()

"""The shortest allocator there can be: the five abstract methods and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from allocators.base import Allocation, KVCacheAllocator, SequenceState, Usage


class Minimal(KVCacheAllocator):
    """Pages on demand, one after the other."""

    name: ClassVar[str] = "minimal"

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        pages = self.pool.take(self.pages_for(len(token_ids)), keep_free)
        if pages is None:
            return None
        self.sequences[seq_id] = SequenceState(pages, len(token_ids), max_len, expected_len)
        return Allocation()

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        new_len = sequence.length + num_tokens
        missing = self.pages_for(new_len) - len(sequence.page_ids)
        pages = self.pool.take(max(0, missing))
        if pages is None:
            return None
        sequence.page_ids += pages
        sequence.length = new_len
        return Allocation()

    def free(self, seq_id: int) -> None:
        self.pool.put_back(self.sequences[seq_id].page_ids)
        del self.sequences[seq_id]

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.sequences[seq_id].page_ids

    def usage(self) -> Usage:
        return Usage(self.pool.num_pages - self.pool.num_free, 0, self.pool.num_free)

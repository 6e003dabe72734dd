"""The contract between the engine and a KV-cache allocation strategy.

An allocator decides which pages of a pool belong to which sequence, and nothing else: it
touches no memory, knows no clock and sees no tensor. Copies it needs are returned as data.
Only `allocate`, `append`, `free`, `block_table` and `usage` are abstract; the rest has a
correct default, so that a strategy overrides just what it does better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from allocators.page_pool import PagePool

NULL_PAGE = -1
"""Block-table entry of a page that was given back by `release`."""


class PageCopy(NamedTuple):
    """Copy a whole page before the next forward pass."""

    source: int
    destination: int


class Allocation(NamedTuple):
    """What changed for a sequence.

    num_cached_tokens: leading tokens whose KV is already in the mapped pages.
    copies: page copies due before the next forward pass; all sources are read before any
        destination is written.
    first_changed: index of the first block-table entry that differs from what the engine
        last saw (table length when none does). The default, 0, is always safe: it makes the
        engine read the whole table again.
    """

    num_cached_tokens: int = 0
    copies: tuple[PageCopy, ...] = ()
    first_changed: int = 0


class Usage(NamedTuple):
    """Pages of the pool by state; the three add up to the pool's size.

    mapped: in the block table of at least one sequence.
    cached: in no block table, but the reuse index can still return their contents.
    free: the rest.
    """

    mapped: int
    cached: int
    free: int


class KVCacheAllocator(ABC):
    """Allocates the pages of one layer group out of a pool.

    Every method that needs room returns `None` when there is none, and then nothing has
    changed. Sequence ids are chosen by the engine and never reused. `max_len` bounds the
    tokens a sequence will ever hold; `expected_len` is the engine's estimate of that number
    for strategies that reserve (0 when it makes none).
    """

    name: ClassVar[str]
    """What a user types: `allocator=NAME`."""

    grows_on_demand: ClassVar[bool] = True
    """Running sequences may ask for more pages, so the watermark (`keep_free`) applies."""

    shares_declared_prefix: ClassVar[bool] = False
    """`fork` is cheap enough that the engine should fork declared prefixes, not recompute them."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.page_size = pool.page_size

    @abstractmethod
    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        """Give a new sequence room for all of `token_ids`, leaving `keep_free` pages available."""

    @abstractmethod
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        """Make room for `num_tokens` more tokens, writable without harm to other sequences."""

    @abstractmethod
    def free(self, seq_id: int) -> None:
        """Forget the sequence and give its pages back."""

    @abstractmethod
    def block_table(self, seq_id: int) -> Sequence[int]:
        """The sequence's pages in logical order; valid until the next call that changes it."""

    @abstractmethod
    def usage(self) -> Usage:
        """Pages by state, in O(1)."""

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        """Start `child_id` as a copy of `parent_id`. Default: new pages, everything copied."""
        raise NotImplementedError  # replaced below by the allocators' author

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        """Replace each key's contents by its value's, as one beam step."""
        raise NotImplementedError

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        """These tokens, which follow the ones committed before, are computed: reuse may begin."""

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Forget tokens from `new_len` on."""

    def release(self, seq_id: int, upto: int) -> None:
        """The first `upto` tokens will not be read again."""

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        """Pages `allocate` would take from those available, before any size-class round-up."""
        return -(-max(len(token_ids), expected_len) // self.page_size)

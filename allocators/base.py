"""The contract between the engine and a KV-cache allocation strategy.

An allocator decides which pages of a pool belong to which sequence, and nothing else: it
touches no memory, knows no clock and sees no tensor. Copies it needs are returned as data.
Only `allocate`, `append`, `free`, `block_table` and `usage` are abstract; the rest has a
correct default, so that a strategy overrides just what it does better.
"""

from __future__ import annotations

import sys
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
        last saw. None says that entries before the next position to be written are as they
        were: the engine looks at the entry of that position and at new ones, or at the whole
        table where there are copies.
    """

    num_cached_tokens: int = 0
    copies: tuple[PageCopy, ...] = ()
    first_changed: int | None = None


UNCHANGED = Allocation(first_changed=sys.maxsize)
"""Room was there already: no entry changed, nothing is to be copied."""


class Usage(NamedTuple):
    """Pages of the pool by state; the three add up to the pool's size.

    mapped: in the block table of at least one sequence.
    cached: in no block table, but the reuse index can still return their contents.
    free: the rest.
    """

    mapped: int
    cached: int
    free: int


class SequenceState:
    """What is known of one live sequence.

    page_ids: its block table; the first `num_released` entries are NULL_PAGE.
    length: tokens that it has asked room for, so the position that `append` gives out next.
    max_len, expected_len: as given to `allocate` or `fork`.
    """

    __slots__ = ("expected_len", "length", "max_len", "num_released", "page_ids")

    def __init__(self, page_ids: list[int], length: int, max_len: int, expected_len: int) -> None:
        self.page_ids = page_ids
        self.length = length
        self.max_len = max_len
        self.expected_len = expected_len
        self.num_released = 0


class LiveSequences(dict[int, SequenceState]):
    """Sequence states by id; looking up an unknown id says what it may mean."""

    def __missing__(self, seq_id: int) -> SequenceState:
        raise KeyError(
            f"sequence {seq_id} is not allocated ({len(self)} others are): "
            "it was never admitted, or has been freed or swapped out"
        )


class KVCacheAllocator(ABC):
    """Allocates the pages of one layer group out of a pool.

    Every method that needs room returns `None` when there is none, and then nothing has
    changed. An unknown `seq_id` is a KeyError, allocating a live one a ValueError. `max_len`
    bounds the tokens a sequence will ever hold; `expected_len` is the engine's estimate of
    that number for strategies that reserve (0 when it makes none).

    A strategy keeps one SequenceState a live sequence in `self.sequences`: `allocate` adds it,
    `append` raises its `length`, `free` deletes it. The defaults below read `length` and write
    nothing else, so an `append` that compares the new length with the table's size never
    counts the room twice that `truncate` left.
    """

    name: ClassVar[str]
    """What a user types: `allocator=NAME`."""

    labelled_options: ClassVar[tuple[str, ...]] = ()
    """Options that name the strategy in tables even at their defaults."""

    grows_on_demand: ClassVar[bool] = True
    """Running sequences may ask for more pages, so the watermark (`keep_free`) applies."""

    forks_share: ClassVar[bool] = False
    """`fork` and `rebranch` let sequences share pages. Where they don't, the engine asks for all
    branches of a request at its admission: copies need as much room as so many requests."""

    shares_declared_prefix: ClassVar[bool] = False
    """`fork` is cheap enough that the engine should fork declared prefixes, not recompute them."""

    shares_pool: ClassVar[bool] = False
    """Takes every page from `pool.take`, and what `pages_to_append` and its like say is all that
    it takes: allocators of other groups of layers may then take from the same pool. Where not, all
    layers keep as long as the one that keeps longest. Not inherited: a subclass says it again."""

    refusals_stand: ClassVar[bool] = False
    """What `allocate` refused once it refuses until pages are given back (by `free`, `retract`,
    `truncate`, `release`, a swap, or a `rebranch` that changes tables) or tokens are committed,
    however often it is asked and whatever else is taken: the engine may remember the refusal
    instead of asking at every step. Not inherited: a subclass says it again."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for flag in ("refusals_stand", "shares_pool"):
            if flag not in vars(cls):
                setattr(cls, flag, False)

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.page_size = pool.page_size
        self.sequences = LiveSequences()
        self._swapped: dict[int, SequenceState] = {}
        self._num_unknown_ids = 0

    @abstractmethod
    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        """Give a new sequence room for all of `token_ids`, leaving `keep_free` pages available
        (free or cached). Must be given at least one token."""

    @abstractmethod
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        """Make room for `num_tokens` >= 1 more tokens, writable without harm to other sequences."""

    @abstractmethod
    def free(self, seq_id: int) -> None:
        """Forget the sequence and give its pages back."""

    @abstractmethod
    def block_table(self, seq_id: int) -> Sequence[int]:
        """The sequence's pages in logical order; valid until the next call that changes it."""

    @abstractmethod
    def usage(self) -> Usage:
        """Pages by state, in O(1)."""

    def retract(self, seq_id: int) -> None:
        """Undo an `allocate` that the engine makes no use of after all: nothing was written to its
        pages, and its copies are never carried out. Default: `free`."""
        self.free(seq_id)

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        """Start `child_id` as a copy of `parent_id`, of the same length.

        `num_cached_tokens` of the result is the parent's length: what the parent has computed,
        the child has as well. Default: new pages, every written one copied.
        """
        length = self.sequences[parent_id].length
        if self.allocate(child_id, self._unknown_ids(length), max_len, expected_len) is None:
            return None
        source = self.block_table(parent_id)[: self.pages_for(length)]
        copies = copies_between(source, self.block_table(child_id))
        self.release(child_id, self.sequences[parent_id].num_released * self.page_size)
        return Allocation(length, copies)

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        """Replace the contents of each key by those of its value, all at once: a beam step.

        Children keep their bounds. Keys and values are live sequences of one length, as beams
        are, computed equally far, and none has released what another is yet to compute;
        ValueError for other lengths. The result's `first_changed` holds for the tables of all
        keys. Default: every page copied into the child's own, which changes no table and needs no
        room, so it is never refused.
        """
        length = self._rebranch_length(parents)
        count = self.pages_for(length)
        copies: list[PageCopy] = []
        for child_id, parent_id in parents.items():
            if child_id != parent_id:
                source = self.block_table(parent_id)[:count]
                copies += copies_between(source, self.block_table(child_id))
        return Allocation(length, tuple(copies), sys.maxsize)

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:  # noqa: B027
        """These tokens, which follow the ones committed before (at first, those cached by
        `allocate`), are computed: reuse may begin. Default: nothing."""

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Forget tokens from `new_len` on. Default: the sequence keeps the room."""
        sequence = self.sequences[seq_id]
        self._check_truncation(seq_id, sequence, new_len)
        sequence.length = new_len

    def release(self, seq_id: int, upto: int) -> None:  # noqa: B027
        """The first `upto` tokens will not be read again: pages that hold nothing else may go
        back, and their entries become NULL_PAGE. Default: nothing."""

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        """Give up the pages of these sequences, whose contents the engine has saved whole.

        Until `swap_in` or `discard_swapped` the ids are not live. Default: `free`.
        """
        states = [self.sequences[seq_id] for seq_id in seq_ids]
        for seq_id, state in zip(seq_ids, states, strict=True):
            self.free(seq_id)
            self._swapped[seq_id] = state
        return UNCHANGED

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        """Give all of these sequences room again, or none of them. The engine then restores
        what they held, whole pages at a time, through the new tables. Default: `allocate`, once
        there are pages enough for all, so that a cache is not evicted in vain."""
        states = [self._swapped_state(seq_id) for seq_id in seq_ids]
        usage = self.usage()
        if KVCacheAllocator.pages_to_swap_in(self, seq_ids) > usage.free + usage.cached:
            return None
        for index, (seq_id, state) in enumerate(zip(seq_ids, states, strict=True)):
            ids = self._unknown_ids(state.length)
            if self.allocate(seq_id, ids, state.max_len, state.expected_len) is None:
                for earlier in seq_ids[:index]:
                    self.retract(earlier)
                return None
            self.release(seq_id, state.num_released * self.page_size)
        for seq_id in seq_ids:
            del self._swapped[seq_id]
        return Allocation()

    def retract_swap_in(self, seq_ids: Sequence[int]) -> None:
        """Undo a `swap_in`, and `append`s since: nothing was restored. Default: `swap_out`."""
        self.swap_out(seq_ids)

    def discard_swapped(self, seq_id: int) -> None:
        """Forget a swapped-out sequence."""
        self._swapped_state(seq_id)
        del self._swapped[seq_id]

    def check_integrity(self) -> None:
        """Raise AssertionError where the books don't balance. May be slow. Default: the tables
        against `usage`."""
        mapped = self.mapped_pages()
        usage = self.usage()
        assert sum(usage) == self.pool.num_pages, f"{usage} is not {self.pool.num_pages} pages"
        assert len(mapped) == usage.mapped, f"tables map {len(mapped)} pages, {usage}"

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        """Pages `allocate` would take from those available, before any size-class round-up."""
        return self.pages_for(max(len(token_ids), expected_len))

    @property
    def max_sequence_pages(self) -> int:
        """Most pages that one sequence could ever get with the pool to itself."""
        return self.pool.num_pages

    def pages_needed_from(
        self, token_ids: Sequence[int], expected_len: int, num_cached: int
    ) -> int:
        """As `pages_needed`, for `allocate_from`."""
        return self.pages_needed(token_ids, expected_len)

    def pages_to_append(self, seq_id: int, num_tokens: int) -> int:
        """Pages `append` would take from those available."""
        wanted = self.pages_for(self.sequences[seq_id].length + num_tokens)
        return max(0, wanted - len(self.block_table(seq_id)))

    def pages_to_fork(self, parent_id: int, max_len: int, expected_len: int) -> int:
        """Pages `fork` would take from those available."""
        length = self.sequences[parent_id].length
        return self.pages_for(max(length, min(expected_len, max_len)))

    def pages_to_swap_in(self, seq_ids: Sequence[int]) -> int:
        """Pages `swap_in` would take from those available."""
        states = [self._swapped_state(seq_id) for seq_id in seq_ids]
        return sum(self.pages_for(max(s.length, min(s.expected_len, s.max_len))) for s in states)

    @property
    def commits(self) -> bool:
        """Whether `commit` does anything."""
        return type(self).commit is not KVCacheAllocator.commit

    @property
    def layer_groups(self) -> tuple[KVCacheAllocator, ...]:
        """The allocators of the model's groups of layers; itself where all layers are one."""
        return (self,)

    def join(self, first: KVCacheAllocator, index: int) -> None:  # noqa: B027
        """Become the allocator of group `index` of layers beside `first`, which is of the same
        class, pool and options. Only asked of a strategy that `shares_pool`. Default: nothing."""

    def num_cached(self, token_ids: Sequence[int]) -> int:
        """Leading tokens that `allocate` would find cached now. Default: none."""
        return 0

    def allocate_from(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int,
        num_cached: int,
    ) -> Allocation | None:
        """As `allocate`, starting from at most `num_cached` tokens that are cached. Default:
        `allocate`, which finds none."""
        return self.allocate(seq_id, token_ids, max_len, expected_len, keep_free)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.page_size)

    def mapped_pages(self) -> set[int]:
        """Every page in some block table, found by reading all of them."""
        tables = [self.block_table(seq_id) for seq_id in self.sequences]
        return {page for table in tables for page in table if page != NULL_PAGE}

    def check_new(self, seq_id: int, token_ids: Sequence[int]) -> None:
        """Raise ValueError for a live id or an empty sequence."""
        if seq_id in self.sequences:
            raise ValueError(f"sequence {seq_id} is allocated already: free it first")
        if not len(token_ids):
            raise ValueError(f"sequence {seq_id} has no tokens: a prompt has at least one")

    def _check_truncation(self, seq_id: int, sequence: SequenceState, new_len: int) -> None:
        released = sequence.num_released * self.page_size
        if not released <= new_len <= sequence.length:
            raise ValueError(
                f"cannot truncate sequence {seq_id} to {new_len} tokens: it has "
                f"{sequence.length}, of which the first {released} are released"
            )

    def _rebranch_length(self, parents: Mapping[int, int]) -> int:
        lengths = {
            seq_id: self.sequences[seq_id].length for seq_id in [*parents, *parents.values()]
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"sequences of one beam step differ in length: {lengths}")
        return next(iter(lengths.values()), 0)

    def _swapped_state(self, seq_id: int) -> SequenceState:
        state = self._swapped.get(seq_id)
        if state is None:
            raise KeyError(f"sequence {seq_id} is not swapped out")
        return state

    def _unknown_ids(self, count: int) -> range:
        """Stand-ins for tokens the base never saw: negative and used once only, so no reuse
        index can take them for the tokens of another sequence."""
        self._num_unknown_ids += count
        return range(-self._num_unknown_ids, count - self._num_unknown_ids)


def copies_between(source: Sequence[int], destination: Sequence[int]) -> tuple[PageCopy, ...]:
    """Page-wise copies from one block table to the start of another, released entries left out."""
    pairs = zip(source, destination, strict=False)
    return tuple(PageCopy(a, b) for a, b in pairs if NULL_PAGE not in (a, b))

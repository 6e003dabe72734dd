"""Paged allocation that finds KV computed earlier by the hash of what a page holds
(vLLM's automatic prefix caching; for partly matching pages, SGLang's RadixAttention)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from allocators.base import (
    NULL_PAGE,
    Allocation,
    KVCacheAllocator,
    PageCopy,
    SequenceState,
    Usage,
)
from allocators.eviction import Eviction
from allocators.idle_pages import IdlePages
from allocators.page_pool import PagePool
from allocators.paged_cow import PagedCopyOnWrite
from allocators.prefix_index import ROOT, PrefixIndex

MAX_REMEMBERED_PROMPTS = 64
"""Refused prompts whose digests are kept for the next try."""


class Match(NamedTuple):
    """Published KV that a prompt can start from.

    page_ids: full pages, to be mapped as they are.
    digests: theirs, and perhaps those of later pages, which were looked up in vain.
    source, num_partial: a page whose first `num_partial` tokens follow the full ones.
    """

    page_ids: list[int]
    digests: list[bytes]
    source: int
    num_partial: int


class History:
    """What a sequence has computed: all tokens, and the digest of each page they fill."""

    __slots__ = ("digests", "token_ids")

    def __init__(self, token_ids: list[int], digests: list[bytes]) -> None:
        self.token_ids = token_ids
        self.digests = digests

    def copy(self) -> History:
        """An independent copy."""
        return History(self.token_ids.copy(), self.digests.copy())


class PagedPrefix(PagedCopyOnWrite):
    """`paged_cow`, and pages stay findable by their contents after their sequences end.

    A full page is published by the `commit` that completes it, under a hash chained from its
    predecessor's; the first page published under a hash stays, later ones with the same
    contents only stand in for it when it is evicted. `allocate` starts from the longest
    published prefix, at most the prompt less its last token, whose logits are wanted. Idle
    published pages are evicted once no other page is free, a sequence's last page before its
    first.

    eviction: which idle page goes first among those that no published page follows: the least
        recently used (`lru`), the one that `allocate` found least often (`lfu`), the one
        published first (`fifo`). `allocators.eviction` says so exactly.

    partial_reuse: go on after the last full page in common by copying the page that shares the
        most leading tokens with what follows, if those are at least `min_partial_tokens`. A
        sequence that ends leaves its partly filled last page for that too. Hits are then exact
        to the token.
    """

    name: ClassVar[str] = "paged_prefix"
    shares_pool: ClassVar[bool] = True
    shares_declared_prefix: ClassVar[bool] = False  # allocate finds the prefix, declared or not

    def __init__(
        self,
        pool: PagePool,
        partial_reuse: bool = True,
        min_partial_tokens: int = 1,
        eviction: Eviction = "lru",
    ) -> None:
        super().__init__(pool)
        if min_partial_tokens < 1:
            raise ValueError(f"min_partial_tokens={min_partial_tokens} is less than one token")
        self._partial_reuse = partial_reuse
        self._min_partial_tokens = min_partial_tokens
        self._eviction: Eviction = eviction
        self._index = PrefixIndex(pool.page_size)
        self._evictable = IdlePages(self._index, eviction)
        self._root = ROOT
        self._histories: dict[int, History] = {}
        self._remembered: OrderedDict[int, tuple[list[int], list[bytes]]] = OrderedDict()

    def join(self, first: KVCacheAllocator, index: int) -> None:
        """One cache for all groups, in which each finds its own pages: any may be evicted."""
        assert isinstance(first, PagedPrefix)
        self._index, self._evictable = first._index, first._evictable
        self._root = ROOT + bytes([index])
        self._index.roots.add(self._root)

    def num_cached(self, token_ids: Sequence[int]) -> int:
        match = self._match(-1, token_ids)
        return len(match.page_ids) * self.page_size + match.num_partial

    def allocate_from(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int,
        num_cached: int,
    ) -> Allocation | None:
        match = self._cut(self._match(seq_id, token_ids), num_cached)
        return self._allocate(seq_id, token_ids, max_len, expected_len, keep_free, match)

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        match = self._match(seq_id, token_ids)
        return self._allocate(seq_id, token_ids, max_len, expected_len, keep_free, match)

    def _allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int,
        match: Match,
    ) -> Allocation | None:
        self.check_new(seq_id, token_ids)
        length = len(token_ids)
        hits, source = match.page_ids, match.source
        evictable = self._evictable
        num_idle = evictable.count(hits) if hits else 0
        num_new = self.pages_for(max(length, min(expected_len, max_len))) - len(hits)
        spare = self.pool.num_free + len(evictable) - num_idle - num_new
        if spare < keep_free:
            self._remember(seq_id, token_ids, match.digests)
            return None
        idle_source = source >= 0 and source in evictable
        if idle_source and spare == 0:
            source, idle_source = -1, False  # it is itself needed as one of the new pages
        if hits:
            self._revive(hits)
        if source >= 0:
            evictable.count_hits([*hits, source])
            evictable.refresh(source)
        elif hits:
            evictable.count_hits(hits)
        if idle_source and num_new > self.pool.num_free:
            evictable.reuse((source,))  # it must not become one of the new pages
            pages = self._take(num_new)
            evictable.add((source,))
        else:
            pages = self._take(num_new)
        assert pages is not None, "room was counted above"
        num_cached = len(hits) * self.page_size
        copies: tuple[PageCopy, ...] = ()
        if source >= 0:
            num_cached += match.num_partial
            copies = (PageCopy(source, pages[0]),)
        self._remembered.pop(seq_id, None)
        self._histories[seq_id] = History(list(token_ids[:num_cached]), match.digests[: len(hits)])
        self.sequences[seq_id] = SequenceState(hits + pages, length, max_len, expected_len)
        return Allocation(num_cached, copies)

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        index = sequence.length // self.page_size
        outcome = super().append(seq_id, num_tokens)
        if outcome is not None and not outcome.copies and index < len(sequence.page_ids):
            page = sequence.page_ids[index]
            if self._index.holds(page):  # it was truncated into, and will be overwritten
                self.pool.put_back(self._evictable.withdraw(page))
        return outcome

    def free(self, seq_id: int) -> None:
        history = self._histories.get(seq_id)
        if history is not None and self._partial_reuse:
            self._publish_last_page(seq_id, history)
        super().free(seq_id)
        del self._histories[seq_id]

    def retract(self, seq_id: int) -> None:
        self._histories[seq_id] = History([], [])  # none of it may be found
        self.free(seq_id)

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        sequence = self.sequences[seq_id]
        history = self._histories[seq_id]
        known = history.token_ids
        if len(known) + len(token_ids) > sequence.length:
            raise ValueError(
                f"sequence {seq_id} has room for {sequence.length} tokens, of which {len(known)} "
                f"are committed: cannot commit {len(token_ids)} more"
            )
        known += token_ids
        digests = history.digests
        size = self.page_size
        num_published = len(self._index.published)
        for start in range(len(digests) * size, len(known) - size + 1, size):
            tokens = tuple(known[start : start + size])
            parent = digests[-1] if digests else self._root
            page = sequence.page_ids[start // size]
            if page == NULL_PAGE:
                digests.append(self._index.digest(parent, tokens))
            else:
                digests.append(self._index.publish(page, parent, tokens))
        self._note_published(num_published)

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        outcome = super().fork(parent_id, child_id, max_len, expected_len)
        if outcome is not None:
            self._histories[child_id] = self._histories[parent_id].copy()
        return outcome

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        outcome = super().rebranch(parents)
        copies = {a: self._histories[b].copy() for a, b in parents.items() if a != b}
        self._histories.update(copies)
        return outcome

    def truncate(self, seq_id: int, new_len: int) -> None:
        super().truncate(seq_id, new_len)
        history = self._histories[seq_id]
        del history.token_ids[new_len:]
        del history.digests[new_len // self.page_size :]

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        """Give the pages up; published ones stay cached, but `swap_in` takes fresh ones."""
        histories = [(s, self._histories[s]) for s in seq_ids if s in self._histories]
        outcome = super().swap_out(seq_ids)
        self._histories.update(histories)
        return outcome

    def retract_swap_in(self, seq_ids: Sequence[int]) -> None:
        histories = {seq_id: self._histories[seq_id] for seq_id in seq_ids}
        self._histories |= {seq_id: History([], []) for seq_id in seq_ids}  # none may be found
        super().swap_out(seq_ids)
        self._histories |= histories

    def discard_swapped(self, seq_id: int) -> None:
        super().discard_swapped(seq_id)
        del self._histories[seq_id]

    def usage(self) -> Usage:
        free = self.pool.num_free
        cached = len(self._evictable)
        return Usage(self.pool.num_pages - free - cached, cached, free)

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        """Pages `allocate` would take from those available: hits on pages that other sequences
        map are not among them."""
        return self.pages_needed_from(token_ids, expected_len, len(token_ids))

    def pages_needed_from(
        self, token_ids: Sequence[int], expected_len: int, num_cached: int
    ) -> int:
        pages = self._full_hits(token_ids, [])[0][: num_cached // self.page_size]
        mapped = len(pages) - self._evictable.count(pages)
        return super().pages_needed(token_ids, expected_len) - mapped

    def cached_pages(self) -> tuple[int, ...]:
        """Idle pages that the index can return, in the order of eviction but for those that
        others follow, which go after them."""
        return tuple(self._evictable)

    def check_integrity(self) -> None:
        super().check_integrity()
        index, idle = self._index, self._evictable
        index.check_integrity()
        idle.check_integrity()
        mapped = self.mapped_pages()
        assert index.published.keys() - mapped == set(idle), "idle published pages != evictable"
        assert index.twins.keys() <= mapped, "an idle page stands in for another"
        live = self.sequences.keys() | self._swapped.keys()
        assert self._histories.keys() == live, "histories of sequences that are gone"

    def _publish_last_page(self, seq_id: int, history: History) -> None:
        """Make a last page that is only partly computed findable: nobody will write it again.

        It is padded with ids that no token has, different for each page, so that only its
        computed tokens can match.
        """
        start = len(history.digests) * self.page_size
        if len(history.token_ids) - start < self._min_partial_tokens:
            return
        tokens = tuple(history.token_ids[start:])
        page = self.sequences[seq_id].page_ids[start // self.page_size]
        if page == NULL_PAGE or self._is_frozen(page):
            return
        parent = history.digests[-1] if history.digests else self._root
        if self._index.longest_partial(parent, tokens)[1] < len(tokens):
            padding = (-1 - page,) * (self.page_size - len(tokens))
            num_published = len(self._index.published)
            self._index.publish(page, parent, tokens + padding)
            self._note_published(num_published)

    def _note_published(self, num_before: int) -> None:
        """Tell the policy what is new in the index since it held `num_before` pages."""
        num_new = len(self._index.published) - num_before
        if num_new:
            self._evictable.note_published(num_new)

    def _match(self, seq_id: int, token_ids: Sequence[int]) -> Match:
        """The longest published prefix of a prompt less its last token."""
        known: list[bytes] = []
        remembered = self._remembered.get(seq_id)
        if remembered is not None and remembered[0] == list(token_ids):
            known = remembered[1]
        pages, digests = self._full_hits(token_ids, known)
        source, num_partial = -1, 0
        if self._partial_reuse:
            start = len(pages) * self.page_size
            rest = token_ids[start : min(start + self.page_size, len(token_ids) - 1)]
            parent = digests[len(pages) - 1] if pages else self._root
            source, num_partial = self._index.longest_partial(parent, rest)
            if num_partial < self._min_partial_tokens:
                source, num_partial = -1, 0
        return Match(pages, digests, source, num_partial)

    def _cut(self, match: Match, num_cached: int) -> Match:
        """The part of a match that covers at most `num_cached` tokens."""
        num_full, rest = divmod(num_cached, self.page_size)
        pages, source, num_partial = match.page_ids, match.source, match.num_partial
        if num_full < len(pages):
            source, num_partial = pages[num_full], rest
        else:
            num_partial = min(num_partial, num_cached - len(pages) * self.page_size)
        if not self._partial_reuse or num_partial < self._min_partial_tokens:
            source, num_partial = -1, 0
        return Match(pages[:num_full], match.digests, source, num_partial)

    def _full_hits(
        self, token_ids: Sequence[int], known: list[bytes]
    ) -> tuple[list[int], list[bytes]]:
        """Leading full pages that are published, and all digests that were worked out so far."""
        page_of, digest = self._index.page_of, self._index.digest
        size = self.page_size
        digests = known
        num_known = len(known)
        pages: list[int] = []
        parent = self._root
        for index in range((len(token_ids) - 1) // size):
            if index < num_known:
                parent = digests[index]
            else:
                parent = digest(parent, token_ids[index * size : (index + 1) * size])
                digests.append(parent)
            page = page_of.get(parent)
            if page is None:
                break
            pages.append(page)
        return pages, digests

    def _remember(self, seq_id: int, token_ids: Sequence[int], digests: list[bytes]) -> None:
        """Keep a refused prompt's digests: the head of the queue comes back every step."""
        self._remembered[seq_id] = (list(token_ids), digests)
        if len(self._remembered) > MAX_REMEMBERED_PROMPTS:
            self._remembered.popitem(last=False)

    def _revive(self, pages: Sequence[int]) -> None:
        """Add a reference to published pages, idle or mapped."""
        mapped = self._evictable.reuse(pages)
        if mapped:
            self.pool.share(mapped)

    def _take(self, count: int) -> list[int] | None:
        missing = count - self.pool.num_free
        if missing > 0:
            if missing > len(self._evictable):
                return None
            self.pool.free_pages += self._evictable.give_up(missing)
        return self.pool.take(count)

    def _give_back(self, pages: Sequence[int]) -> None:
        published, twins, evictable = self._index.published, self._index.twins, self._evictable
        dropped = self.pool.drop(pages)
        blank = [page for page in dropped if page not in published]
        if not blank:
            evictable.add(reversed(dropped))
            return
        for page in reversed(dropped):
            if page in published:
                evictable.add((page,))
            elif page in twins:
                evictable.refresh(self._index.withdraw_twin(page))
        self.pool.put_back(blank)

    def _held_pages(self) -> set[int]:
        return super()._held_pages() | set(self._evictable)

    def _is_frozen(self, page: int) -> bool:
        return super()._is_frozen(page) or self._index.holds(page)

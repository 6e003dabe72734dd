"""Allocators that are wrong in one way each; the contract test must find every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from allocators.base import (
    NULL_PAGE,
    UNCHANGED,
    Allocation,
    KVCacheAllocator,
    PageCopy,
    SequenceState,
)
from allocators.contiguous import Contiguous
from allocators.page_pool import PagePool
from allocators.paged import Paged
from allocators.paged_cow import PagedCopyOnWrite
from allocators.paged_prefix import PagedPrefix


class ForgetsToCopyOnWrite(PagedCopyOnWrite):
    """Appends into a page that another sequence still reads."""

    name: ClassVar[str] = "forgets_to_copy_on_write"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        return Paged.append(self, seq_id, num_tokens)


class ForgetsToSayCopy(PagedCopyOnWrite):
    """Takes a page for the copy, but doesn't tell the engine to copy."""

    name: ClassVar[str] = "forgets_to_say_copy"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        return outcome and outcome._replace(copies=())


class LeaksOnFree(Paged):
    """Keeps the last page of every sequence that ends."""

    name: ClassVar[str] = "leaks_on_free"

    def _give_back(self, pages: Sequence[int]) -> None:
        super()._give_back(pages[:-1] if len(pages) > 1 else pages)

    def check_integrity(self) -> None:
        """Looks away."""


class EvictsReferencedPage(PagedPrefix):
    """Leaves pages in the eviction queue that a new sequence starts from."""

    name: ClassVar[str] = "evicts_referenced_page"

    def _revive(self, pages: Sequence[int]) -> None:
        self.pool.share(page for page in pages if page not in self._evictable)

    def check_integrity(self) -> None:
        """Looks away."""


class HandsOutPageTwice(Paged):
    """Gives the page of every growth back at once, while it is in use."""

    name: ClassVar[str] = "hands_out_page_twice"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        if outcome is not None and outcome is not UNCHANGED:
            self.pool.put_back(self.sequences[seq_id].page_ids[-1:])
        return outcome

    def check_integrity(self) -> None:
        """Looks away."""


class ChangesOnRefusal(Paged):
    """Takes what pages there are before it says no."""

    name: ClassVar[str] = "changes_on_refusal"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        if outcome is None:
            self.sequences[seq_id].page_ids += self.pool.take(self.pool.num_free) or []
            self.sequences[seq_id].length += 0
        return outcome


class CountsRefusedTokens(Paged):
    """Remembers the longer length of a refused append."""

    name: ClassVar[str] = "counts_refused_tokens"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        if outcome is None:
            self.sequences[seq_id].length += num_tokens
        return outcome


class PublishesBeforeComputed(PagedPrefix):
    """Lets others find a prompt's pages as soon as they are allocated."""

    name: ClassVar[str] = "publishes_before_computed"

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        outcome = super().allocate(seq_id, token_ids, max_len, expected_len, keep_free)
        if outcome is not None:
            super().commit(seq_id, token_ids[outcome.num_cached_tokens :])
        return outcome

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        room = self.sequences[seq_id].length - len(self._histories[seq_id].token_ids)
        super().commit(seq_id, token_ids[len(token_ids) - room :] if room else [])


class IgnoresEarlierTokens(PagedPrefix):
    """Hashes a page by its own tokens only."""

    name: ClassVar[str] = "ignores_earlier_tokens"

    def _full_hits(
        self, token_ids: Sequence[int], known: list[bytes]
    ) -> tuple[list[int], list[bytes]]:
        by_tokens = {entry[2]: page for page, entry in self._index.published.items()}
        digests = {page: entry[0] for page, entry in self._index.published.items()}
        pages: list[int] = []
        for start in range(0, len(token_ids) - self.page_size, self.page_size):
            page = by_tokens.get(tuple(token_ids[start : start + self.page_size]))
            if page is None or page in pages:
                break
            pages.append(page)
        return pages, [digests[page] for page in pages]


class CachesWholePrompt(PagedPrefix):
    """Claims the last prompt token as well, so no logits would be computed."""

    name: ClassVar[str] = "caches_whole_prompt"

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        outcome = super().allocate(seq_id, token_ids, max_len, expected_len, keep_free)
        if outcome is not None and outcome.num_cached_tokens == len(token_ids) - 1 > 0:
            return outcome._replace(num_cached_tokens=len(token_ids))
        return outcome


class OverwritesPublishedPage(PagedPrefix):
    """Writes into a published page after a truncation, and leaves it in the index."""

    name: ClassVar[str] = "overwrites_published_page"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        return PagedCopyOnWrite.append(self, seq_id, num_tokens)


class ForgetsTruncation(Contiguous):
    """Goes on counting from where it was before tokens were rejected."""

    name: ClassVar[str] = "forgets_truncation"

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Nothing at all."""


class MixesUpBeams(PagedCopyOnWrite):
    """Replaces one beam after the other instead of all at once."""

    name: ClassVar[str] = "mixes_up_beams"

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        outcome: Allocation | None = UNCHANGED
        for child, parent in parents.items():
            outcome = super().rebranch({child: parent})
        return outcome


class IgnoresWatermark(Paged):
    """Admits a prompt into the pages that were to be kept free."""

    name: ClassVar[str] = "ignores_watermark"

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        return super().allocate(seq_id, token_ids, max_len, expected_len)


class HidesNewPages(Paged):
    """Says that nothing changed when the table grew."""

    name: ClassVar[str] = "hides_new_pages"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        return super().append(seq_id, num_tokens) and UNCHANGED


class MiscountsUsage(PagedPrefix):
    """Counts cached pages as free as well."""

    name: ClassVar[str] = "miscounts_usage"

    def usage(self):  # type: ignore[no-untyped-def]
        usage = super().usage()
        return usage._replace(free=usage.free + usage.cached)


class DropsPageTwice(PagedCopyOnWrite):
    """Forgets that a swapped-in page is shared."""

    name: ClassVar[str] = "drops_page_twice"

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        outcome = super().swap_in(seq_ids)
        if outcome is not None:
            self.pool.extra_refs.clear()
        return outcome


class NeverRefuses(KVCacheAllocator):
    """Hands out page ids without end."""

    name: ClassVar[str] = "never_refuses"

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool)
        self.next_page = 0

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        count = self.pages_for(max_len)
        table = list(range(self.next_page, self.next_page + count))
        self.next_page += count
        self.sequences[seq_id] = SequenceState(table, len(token_ids), max_len, expected_len)
        return Allocation(copies=(PageCopy(0, 0),))

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        self.sequences[seq_id].length += num_tokens
        return UNCHANGED

    def free(self, seq_id: int) -> None:
        del self.sequences[seq_id]

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.sequences[seq_id].page_ids

    def usage(self):  # type: ignore[no-untyped-def]
        mapped = len(self.mapped_pages())
        return (mapped, 0, self.pool.num_pages - mapped)


class PrunesPageStillRead(PagedCopyOnWrite):
    """Frees what a pruned beam held, though another beam goes on reading it."""

    name: ClassVar[str] = "prunes_page_still_read"

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        pruned = [s for s in parents if s not in parents.values()]
        shared = {
            p for s in pruned for p in self.sequences[s].page_ids if p in self.pool.extra_refs
        }
        outcome = super().rebranch(parents)
        self.pool.put_back(sorted(shared & self.mapped_pages()))
        return outcome

    def check_integrity(self) -> None:
        """Looks away."""


class TruncatesSharedPageTwice(PagedCopyOnWrite):
    """Drops its reference to a shared page twice when tokens are rejected."""

    name: ClassVar[str] = "truncates_shared_page_twice"

    def truncate(self, seq_id: int, new_len: int) -> None:
        table = self.sequences[seq_id].page_ids
        shared = [p for p in table[self.pages_for(new_len) :] if p in self.pool.extra_refs]
        super().truncate(seq_id, new_len)
        self._give_back(shared)

    def check_integrity(self) -> None:
        """Looks away."""


class MixesUpSwappedPages(PagedCopyOnWrite):
    """Takes sequences that shared their first page for sharing all: only the longest one's
    contents come back."""

    name: ClassVar[str] = "mixes_up_swapped_pages"

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        outcome = super().swap_out(seq_ids)
        longest: dict[int, list[int]] = {}
        for state in sorted((self._swapped[s] for s in seq_ids), key=lambda s: -len(s.page_ids)):
            if state.page_ids[0] != NULL_PAGE:
                known = longest.setdefault(state.page_ids[0], state.page_ids)
                state.page_ids = known[: len(state.page_ids)]
        return outcome


class ReleasesForkedPage(PagedCopyOnWrite):
    """Frees what has left a window, though a fork still reads it."""

    name: ClassVar[str] = "releases_forked_page"

    def release(self, seq_id: int, upto: int) -> None:
        sequence = self.sequences[seq_id]
        pages = sequence.page_ids[sequence.num_released : upto // self.page_size]
        shared = [page for page in pages if page in self.pool.extra_refs]
        super().release(seq_id, upto)
        self.pool.put_back(shared)

    def check_integrity(self) -> None:
        """Looks away."""


class LeaksOnRefusedSwapIn(Paged):
    """Takes room one sequence after the other, and forgets it where a later one has none."""

    name: ClassVar[str] = "leaks_on_refused_swap_in"

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        tables = []
        for seq_id in seq_ids:
            pages = self.pool.take(self.pages_for(self._swapped[seq_id].length))
            if pages is None:
                return None
            tables.append(pages)
        self.pool.put_back([page for table in tables for page in table])
        return super().swap_in(seq_ids)

    def check_integrity(self) -> None:
        """Looks away."""


class LeaksWhenCancelledInSwap(PagedCopyOnWrite):
    """Reserves room for those swapped out, and keeps it when one of them is cancelled."""

    name: ClassVar[str] = "leaks_when_cancelled_in_swap"

    def discard_swapped(self, seq_id: int) -> None:
        super().discard_swapped(seq_id)
        self.pool.take(1)


class RefusesHalfWay(PagedCopyOnWrite):
    """Takes the page for the copy first, and has lost it where there is no second one."""

    name: ClassVar[str] = "refuses_half_way"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        if outcome is None:
            self.pool.take(1)
        return outcome

    def check_integrity(self) -> None:
        """Looks away."""


class ReleasesPartialPage(Paged):
    """Gives a page back whose last tokens are still in the window."""

    name: ClassVar[str] = "releases_partial_page"

    def release(self, seq_id: int, upto: int) -> None:
        super().release(seq_id, upto + self.page_size - 1)


class ChangesItsMind(Paged):
    """Says that its refusals stand, and refuses every other admission while pages are free."""

    name: ClassVar[str] = "changes_its_mind"
    refusals_stand: ClassVar[bool] = True

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool)
        self._num_asked = 0

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        self._num_asked += 1
        if self.sequences and self._num_asked % 2:
            return None
        return super().allocate(seq_id, token_ids, max_len, expected_len, keep_free)


class MovesPagesInSilence(Paged):
    """Changes the order of pages that hold tokens, and says nothing of it."""

    name: ClassVar[str] = "moves_pages_in_silence"

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        outcome = super().append(seq_id, num_tokens)
        table = self.sequences[seq_id].page_ids
        if outcome is not None and len(table) > 2 and NULL_PAGE not in table[:2]:
            table[:2] = reversed(table[:2])
            return Allocation()
        return outcome

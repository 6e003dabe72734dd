"""Allocators that are wrong in one way each; the contract test must find every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from allocators.base import UNCHANGED, Allocation, KVCacheAllocator, PageCopy, SequenceState
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

"""What the engine itself knows of a pool's pages: who maps them, and what is computed in them.

It is kept from what the engine is told and what it computes, never from what a strategy says of
itself, so that a claimed prefix hit can be compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from allocators.base import PageCopy


class PageContent(NamedTuple):
    """The tokens whose KV a page holds, from its first slot on. KV depends on all tokens before, so
    `prefix` is the digest of those in the pages before."""

    prefix: int
    token_ids: list[int]

    def holds(self, prefix: int, token_ids: Sequence[int]) -> bool:
        """Whether the page starts with the KV of `token_ids` after `prefix`."""
        return self.prefix == prefix and self.token_ids[: len(token_ids)] == list(token_ids)


def digest(prefix: int, token_ids: Iterable[int]) -> int:
    """Of a full page's tokens and all before them."""
    return hash((prefix, tuple(token_ids)))


class PageBook:
    """One book a pool, shared by the layer groups that draw from it.

    counts: block-table entries that are a page, by page.
    num_mapped: pages in at least one block table. num_idle_computed: pages in none that hold
    computed KV, which is all that a reuse index can return. host_ns: time spent in the strategies.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_mapped = 0
        self.num_idle_computed = 0
        self.host_ns = 0
        self.contents: dict[int, PageContent] = {}
        self.counts = [0] * num_pages

    def map(self, page: int) -> None:
        """One more block-table entry is this page."""
        self.counts[page] += 1
        if self.counts[page] == 1:
            self.num_mapped += 1
            self.num_idle_computed -= page in self.contents

    def unmap(self, page: int) -> None:
        """One block-table entry fewer is this page."""
        self.counts[page] -= 1
        if not self.counts[page]:
            self.num_mapped -= 1
            self.num_idle_computed += page in self.contents

    def forget(self, page: int) -> None:
        """The page's KV is about to be overwritten."""
        if self.contents.pop(page, None) is not None and not self.counts[page]:
            self.num_idle_computed -= 1

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy pages whole: all sources are read before any destination is written. No destination
        is mapped yet, or it is only mapped by whom it is copied for."""
        read = [self.contents.get(source) for source, _ in copies]
        for (_, destination), content in zip(copies, read, strict=True):
            self.forget(destination)
            if content is not None:
                self.put(destination, content)

    def put(self, page: int, content: PageContent) -> None:
        """The page now holds a copy of `content`."""
        self.forget(page)
        self.contents[page] = PageContent(content.prefix, content.token_ids.copy())
        self.num_idle_computed += not self.counts[page]

    def first_mismatch(
        self, token_ids: Sequence[int], table: Sequence[int], digests: list[int]
    ) -> int | None:
        """The first entry of `table` that does not hold the KV of its part of `token_ids`, a
        sequence's first tokens. digests: of no tokens; those of full pages are added."""
        for start in range(0, len(token_ids), self.page_size):
            index, wanted = start // self.page_size, token_ids[start : start + self.page_size]
            content = self.contents.get(table[index])
            if content is None or not content.holds(digests[-1], wanted):
                return index
            if len(wanted) == self.page_size:
                digests.append(digest(digests[-1], wanted))
        return None

    def write(
        self, table: Sequence[int], start: int, token_ids: Sequence[int], digests: list[int]
    ) -> None:
        """The KV of `token_ids` is computed at positions `start`, ... of `table`. digests: of the
        full pages before (the first entry stands for no page at all); completed pages are added."""
        size, contents = self.page_size, self.contents
        index, offset = divmod(start, size)
        taken, count = 0, len(token_ids)
        while taken < count:
            page = table[index]
            held = contents.get(page)
            if held is None or not offset:
                held = contents[page] = PageContent(digests[index], [])
            tokens = held[1]
            if offset < len(tokens):
                del tokens[offset:]
            tokens.extend(token_ids[taken : taken + size - offset])
            taken += len(tokens) - offset
            if len(tokens) == size:
                digests.append(digest(digests[index], tokens))
            index, offset = index + 1, 0

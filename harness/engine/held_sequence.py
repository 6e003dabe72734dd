"""A sequence that holds memory, as the engine knows it from what it was told."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from allocators.base import NULL_PAGE
from harness.engine.page_book import PageContent


class HeldSequence:
    """Its block table and how far it is computed.

    pages: the block table, of which the first `num_released` entries are NULL_PAGE. length: tokens
        that it has room for.
    num_committed, digests: tokens that are computed as far as the strategy was told, and the
        digest of each full page of them, after that of no page.
    unused: destinations of copies that no step has carried out yet.
    swap, saved: the swap that it left with, and what its pages held then.
    """

    __slots__ = (
        "digests", "length", "num_committed", "num_released", "pages", "saved", "swap", "unused",
    )  # fmt: skip

    def __init__(
        self, pages: list[int], length: int, num_committed: int, digests: list[int]
    ) -> None:
        self.pages = pages
        self.length = length
        self.num_released = 0
        self.num_committed = num_committed
        self.digests = digests
        self.unused: tuple[int, ...] = ()
        self.swap = 0
        self.saved: list[PageContent | None] = []


def leading_nulls(pages: Sequence[int]) -> int:
    """Entries at the start of a block table that are NULL_PAGE."""
    return next((i for i, page in enumerate(pages) if page != NULL_PAGE), len(pages))


def first_difference(table: Sequence[int], other: Sequence[int]) -> int:
    """The first index at which the tables differ; sys.maxsize if none."""
    for index in range(max(len(table), len(other))):
        if index >= min(len(table), len(other)) or table[index] != other[index]:
            return index
    return sys.maxsize

"""A token tape: a list that plays GPU memory.

What stands at a slot is not a bare token but a *KV id*, one for each different sequence of
tokens up to and including that one, since the KV of a token depends on all before it. So
nothing is ever right by accident.
"""

from __future__ import annotations

from collections.abc import Sequence

from allocators.base import PageCopy

EMPTY = -1
"""KV id of a slot that was never written, and of what stands before a first token."""


class Tape:
    """The slots of `num_pages` pages, read and written through block tables."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._page_size = page_size
        self._slots = [EMPTY] * (num_pages * page_size)
        self._kv_ids: dict[tuple[int, int], int] = {}
        self._tokens: list[tuple[int, ...]] = []

    def read(self, table: Sequence[int], start: int, end: int) -> list[int]:
        """KV ids at positions `start` to `end` - 1; EMPTY on a released page."""
        size, slots = self._page_size, self._slots
        first, last = start // size, -(-end // size)
        kv_ids: list[int] = []
        for page in table[first:last]:
            kv_ids += slots[page * size : (page + 1) * size] if page >= 0 else [EMPTY] * size
        return kv_ids[start - first * size : end - first * size]

    def write(self, table: Sequence[int], start: int, kv_ids: Sequence[int]) -> None:
        """Store KV ids at the positions from `start` on."""
        size, slots = self._page_size, self._slots
        for position, kv_id in enumerate(kv_ids, start):
            slots[table[position // size] * size + position % size] = kv_id

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy whole pages; all sources are read before any destination is written."""
        size, slots = self._page_size, self._slots
        contents = [slots[page * size : (page + 1) * size] for page, _ in copies]
        for (_, page), content in zip(copies, contents, strict=True):
            slots[page * size : (page + 1) * size] = content

    def kv_ids(self, before: int, token_ids: Sequence[int]) -> list[int]:
        """The KV id of each of these tokens, which follow the one whose KV id is `before`."""
        kv_ids = []
        for token in token_ids:
            key = (before, token)
            if key not in self._kv_ids:
                self._kv_ids[key] = len(self._tokens)
                self._tokens.append((*self.tokens(before), token))
            before = self._kv_ids[key]
            kv_ids.append(before)
        return kv_ids

    def tokens(self, kv_id: int) -> tuple[int, ...]:
        """The tokens that a KV id stands for; none for EMPTY."""
        return () if kv_id == EMPTY else self._tokens[kv_id]

"""Pages on the host that preempted groups wait in (PagedAttention, section 4.5)."""

from __future__ import annotations

from typing import NamedTuple


class TablePlace(NamedTuple):
    """An entry of a sequence's table in one group of layers."""

    group: int
    seq_id: int
    page_index: int


class SavedPages(NamedTuple):
    """Where a swapped-out group's KV lies. host_pages: by place in the tables; a page that
    several sequences shared is saved once."""

    host_pages: dict[TablePlace, int]

    @property
    def distinct(self) -> list[int]:
        """Each host page once."""
        return list(dict.fromkeys(self.host_pages.values()))


class HostPool:
    """A limited number of host pages. What is put back is handed out from the next step on:
    a step saves before it restores."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._put_back: list[int] = []

    @property
    def num_used(self) -> int:
        """Pages that hold something."""
        return self.num_pages - len(self._free) - len(self._put_back)

    def begin_step(self) -> None:
        """What the last step restored is free."""
        self._free += self._put_back
        self._put_back.clear()

    def take(self, count: int) -> list[int] | None:
        """`count` pages, or None where there are fewer."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def put_back(self, pages: list[int]) -> None:
        """Pages that are read for the last time in this step."""
        self._put_back += pages

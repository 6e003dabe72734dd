"""Placement of runs of consecutive pages: a buddy system and fitted extents."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol


class RunPlacer(Protocol):
    """Hands out runs of consecutive pages out of pages 0 .. num_pages - 1."""

    num_free: int

    @property
    def largest_run(self) -> int:
        """Pages of the longest run that an empty pool can give."""
        ...

    def take(self, num_pages: int) -> tuple[int, int] | None:
        """First page and granted length (at least `num_pages`) of a run, or None."""
        ...

    def grow(self, start: int, granted: int, num_pages: int) -> int | None:
        """Extend a run in place to `num_pages` or more; its new length, or None."""
        ...

    def put_back(self, start: int, granted: int) -> None:
        """Free a run."""
        ...

    def free_runs(self) -> list[tuple[int, int]]:
        """Free runs as (first page, length), by first page."""
        ...


class BuddyPlacer:
    """Runs of a power of two pages (Knuth, TAOCP 1, section 2.5, algorithms R and S).

    A pool of any size starts as the powers of two that it is the sum of, the largest first,
    so that each block is aligned to its size: 983 pages are 512 + 256 + 128 + 64 + 16 + 4 +
    2 + 1. A block's buddy lies at its start with the bit of its size flipped.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_free = num_pages
        self._num_pages = num_pages
        self._free: list[dict[int, None]] = [{} for _ in range(num_pages.bit_length())]
        start = 0
        for order in reversed(range(num_pages.bit_length())):
            if num_pages >> order & 1:
                self._free[order][start] = None
                start += 1 << order

    @property
    def largest_run(self) -> int:
        return 1 << (self._num_pages.bit_length() - 1)

    def take(self, num_pages: int) -> tuple[int, int] | None:
        wanted = (num_pages - 1).bit_length()
        for order in range(wanted, len(self._free)):
            if self._free[order]:
                start, _ = self._free[order].popitem()
                for smaller in range(wanted, order):
                    self._free[smaller][start + (1 << smaller)] = None
                self.num_free -= 1 << wanted
                return start, 1 << wanted
        return None

    def grow(self, start: int, granted: int, num_pages: int) -> int | None:
        size = granted
        while size < num_pages:
            order = size.bit_length() - 1
            if start & size or start + size not in self._free[order]:
                return None
            size *= 2
        for order in range(granted.bit_length() - 1, size.bit_length() - 1):
            del self._free[order][start + (1 << order)]
        self.num_free -= size - granted
        return size

    def put_back(self, start: int, granted: int) -> None:
        self.num_free += granted
        order = granted.bit_length() - 1
        while order < len(self._free) and (start ^ (1 << order)) in self._free[order]:
            del self._free[order][start ^ (1 << order)]
            start &= ~(1 << order)
            order += 1
        self._free[order][start] = None

    def free_runs(self) -> list[tuple[int, int]]:
        return sorted((start, 1 << k) for k, starts in enumerate(self._free) for start in starts)


class FittedPlacer:
    """Runs of exactly the length asked for, out of the lowest (first fit) or the tightest
    (best fit) free extent that holds them; neighbouring free extents are joined."""

    def __init__(self, num_pages: int, tightest: bool) -> None:
        self.num_free = num_pages
        self._num_pages = num_pages
        self._tightest = tightest
        self._starts = [0]
        self._length = {0: num_pages}

    @property
    def largest_run(self) -> int:
        return self._num_pages

    def take(self, num_pages: int) -> tuple[int, int] | None:
        fitting = (start for start in self._starts if self._length[start] >= num_pages)
        if self._tightest:
            start = min(fitting, key=self._length.__getitem__, default=None)
        else:
            start = next(fitting, None)
        if start is None:
            return None
        self._cut_front(start, num_pages)
        return start, num_pages

    def grow(self, start: int, granted: int, num_pages: int) -> int | None:
        extra = num_pages - granted
        if self._length.get(start + granted, 0) < extra:
            return None
        self._cut_front(start + granted, extra)
        return num_pages

    def put_back(self, start: int, granted: int) -> None:
        self.num_free += granted
        index = bisect_left(self._starts, start)
        following = self._length.pop(start + granted, 0)
        if following:
            del self._starts[index]
        if index and (before := self._starts[index - 1]) + self._length[before] == start:
            self._length[before] += granted + following
        else:
            self._starts.insert(index, start)
            self._length[start] = granted + following

    def free_runs(self) -> list[tuple[int, int]]:
        return [(start, self._length[start]) for start in self._starts]

    def _cut_front(self, start: int, num_pages: int) -> None:
        self.num_free -= num_pages
        length = self._length.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        if length > num_pages:
            insort(self._starts, start + num_pages)
            self._length[start + num_pages] = length - num_pages

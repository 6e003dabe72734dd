"""Eviction policies of a prefix cache: the order in which idle pages are given up."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal

Eviction = Literal["lru", "lfu", "fifo"]

MAX_HITS = 1023
"""Hits after which `lfu` stops counting, so that the lowest count is found in O(1)."""


class EvictionOrder(ABC):
    """A policy: idle pages in the order in which they are to go, tree or not.

    Every operation but iteration is O(1) a page, whatever the number of pages; `fifo` says where
    it is not.

    idle: the pages in the order, as keys.
    """

    idle: Mapping[int, object]

    @abstractmethod
    def add(self, pages: Iterable[int]) -> None:
        """These published pages have become idle, one after the other."""

    @abstractmethod
    def remove(self, pages: Iterable[int]) -> None:
        """These idle pages are taken out: they are in use again, or cut off the index."""

    @abstractmethod
    def take_first(self) -> int:
        """Take out the page that is to go first. There must be one."""

    @abstractmethod
    def put_first(self, page: int) -> None:
        """Put back what `take_first` gave, ahead of those that it ranks equal to."""

    @abstractmethod
    def __iter__(self) -> Iterator[int]:
        """The pages, the first to go first."""

    def refresh(self, page: int) -> None:  # noqa: B027
        """What an idle page holds was in use until now (in another page)."""

    def count_hits(self, pages: Iterable[int]) -> None:  # noqa: B027
        """A new sequence starts from these published pages, idle or not."""

    def note_published(self, pages: Iterable[int]) -> None:  # noqa: B027
        """These pages may be found from now on, the latest given first."""

    def forget(self, page: int) -> None:  # noqa: B027
        """This page, out of the order by now or never in it, is published no longer."""

    def rename(self, page: int, successor: int) -> None:  # noqa: B027
        """What `page` held is published as `successor` from now on."""


class LeastRecentlyUsed(EvictionOrder):
    """`lru`: by the time at which a page became idle, or was copied from while idle."""

    def __init__(self) -> None:
        self.idle: OrderedDict[int, None] = OrderedDict()

    def add(self, pages: Iterable[int]) -> None:
        idle = self.idle
        for page in pages:
            idle[page] = None

    def remove(self, pages: Iterable[int]) -> None:
        idle = self.idle
        for page in pages:
            del idle[page]

    def take_first(self) -> int:
        return self.idle.popitem(last=False)[0]

    def put_first(self, page: int) -> None:
        self.idle[page] = None
        self.idle.move_to_end(page, last=False)

    def refresh(self, page: int) -> None:
        self.idle.move_to_end(page)

    def __iter__(self) -> Iterator[int]:
        return iter(self.idle)


class LeastFrequentlyUsed(EvictionOrder):
    """`lfu`: by the hits since a page was published, up to MAX_HITS; among equals, `lru`.

    One `lru` queue for each number of hits, and a bit for each queue that is not empty
    (the idea of Shah, Mitra and Matani's O(1) LFU, 2010; here pages come back with any count,
    so a bit mask takes the place of their list of queues).
    """

    def __init__(self) -> None:
        self.idle: dict[int, int] = {}
        self._num_hits: dict[int, int] = {}  # of published pages, idle or not; 0 is left out
        self._queues: dict[int, OrderedDict[int, None]] = {}
        self._occupied = 0

    def add(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._queue_for(page)[page] = None

    def remove(self, pages: Iterable[int]) -> None:
        for page in pages:
            num_hits = self.idle.pop(page)
            queue = self._queues[num_hits]
            del queue[page]
            if not queue:
                self._occupied ^= 1 << num_hits

    def take_first(self) -> int:
        num_hits = (self._occupied & -self._occupied).bit_length() - 1
        page = next(iter(self._queues[num_hits]))
        self.remove((page,))
        return page

    def put_first(self, page: int) -> None:
        queue = self._queue_for(page)
        queue[page] = None
        queue.move_to_end(page, last=False)

    def refresh(self, page: int) -> None:
        self._queues[self.idle[page]].move_to_end(page)

    def count_hits(self, pages: Iterable[int]) -> None:
        for page in pages:
            is_idle = page in self.idle
            if is_idle:
                self.remove((page,))
            self._num_hits[page] = min(self._num_hits.get(page, 0) + 1, MAX_HITS)
            if is_idle:
                self.add((page,))

    def forget(self, page: int) -> None:
        self._num_hits.pop(page, None)

    def rename(self, page: int, successor: int) -> None:
        if page in self._num_hits:
            self._num_hits[successor] = self._num_hits.pop(page)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._queues[count] for count in sorted(self._queues))

    def _queue_for(self, page: int) -> OrderedDict[int, None]:
        """The queue that an idle page belongs to by its hits, marked as not empty."""
        num_hits = self._num_hits.get(page, 0)
        self.idle[page] = num_hits
        self._occupied |= 1 << num_hits
        if num_hits not in self._queues:
            self._queues[num_hits] = OrderedDict()
        return self._queues[num_hits]


class FirstInFirstOut(EvictionOrder):
    """`fifo`: by the time at which a page was published, however often it is used after that.

    Pages become idle in any order, so the one published first comes from a heap: O(log n) for
    n idle pages where the others are O(1). A page enters the heap once for each time that its
    turn comes, not each time that it becomes idle.
    """

    def __init__(self) -> None:
        self.idle: dict[int, None] = {}
        self._num_published = 0
        self._places: dict[int, int] = {}  # of published pages, idle or not
        self._page_at: dict[int, int] = {}  # the other way round
        self._heap: list[int] = []  # places of all idle pages, and perhaps of others
        self._in_heap: set[int] = set()

    def add(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.idle[page] = None
            place = self._places[page]
            if place not in self._in_heap:
                self._in_heap.add(place)
                heapq.heappush(self._heap, place)

    def remove(self, pages: Iterable[int]) -> None:
        for page in pages:
            del self.idle[page]

    def take_first(self) -> int:
        page = -1
        while page not in self.idle:
            place = heapq.heappop(self._heap)
            self._in_heap.remove(place)
            page = self._page_at.get(place, -1)
        del self.idle[page]
        return page

    def put_first(self, page: int) -> None:
        self.add((page,))

    def note_published(self, pages: Iterable[int]) -> None:
        for page in reversed(list(pages)):
            self._num_published += 1
            self._places[page] = self._num_published
            self._page_at[self._num_published] = page

    def forget(self, page: int) -> None:
        place = self._places.pop(page, None)
        if place is not None:
            del self._page_at[place]
        if len(self._heap) > 2 * len(self._places) + 64:  # pages withdrawn without their turn
            self._in_heap &= self._page_at.keys()
            self._heap = sorted(self._in_heap)

    def rename(self, page: int, successor: int) -> None:
        place = self._places.pop(page)
        self._places[successor] = place
        self._page_at[place] = successor

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.idle, key=self._places.__getitem__))


ORDERS: Mapping[str, type[EvictionOrder]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "fifo": FirstInFirstOut,
}
"""The policies by the name a user types."""

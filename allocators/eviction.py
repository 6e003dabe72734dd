"""Eviction policies of a prefix cache: the order in which idle pages are given up."""

from __future__ import annotations

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

    Every operation is O(1) a page, amortised, whatever the number of pages.

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
    """`fifo`: by the time at which a page was published.

    All published pages stand in one line. A page whose turn comes while it is in use is passed
    over; once idle, it goes before all that still stand in line. Those passed over go in the
    order in which they became idle: finding the one published first would not be O(1).
    """

    def __init__(self) -> None:
        self.idle: dict[int, None] = {}
        self._num_published = 0
        self._line: OrderedDict[int, int] = OrderedDict()  # pages by number of publication
        self._places: dict[int, int] = {}  # the other way round
        self._overdue: OrderedDict[int, None] = OrderedDict()  # idle, and out of the line

    def add(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.idle[page] = None
            if page not in self._places:
                self._overdue[page] = None

    def remove(self, pages: Iterable[int]) -> None:
        for page in pages:
            del self.idle[page]
            self._overdue.pop(page, None)

    def take_first(self) -> int:
        page = next(iter(self._overdue), -1)
        while page not in self.idle:
            _, page = self._line.popitem(last=False)
            del self._places[page]
        self.remove((page,))
        return page

    def put_first(self, page: int) -> None:
        self.add((page,))
        self._overdue.move_to_end(page, last=False)

    def note_published(self, pages: Iterable[int]) -> None:
        for page in reversed(list(pages)):
            self._num_published += 1
            self._line[self._num_published] = page
            self._places[page] = self._num_published

    def forget(self, page: int) -> None:
        place = self._places.pop(page, None)
        if place is not None:
            del self._line[place]

    def rename(self, page: int, successor: int) -> None:
        place = self._places.pop(page, None)
        if place is not None:
            self._line[place] = successor
            self._places[successor] = place

    def __iter__(self) -> Iterator[int]:
        return chain(self._overdue, (page for page in self._line.values() if page in self.idle))


ORDERS: Mapping[str, type[EvictionOrder]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "fifo": FirstInFirstOut,
}
"""The policies by the name a user types."""

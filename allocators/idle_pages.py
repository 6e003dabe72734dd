"""The pages of a prefix cache that may be given up: in a policy's order, but leaves first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from allocators.eviction import ORDERS, Eviction
from allocators.prefix_index import Entry, PrefixIndex


class IdlePages:
    """Published pages that nobody maps, given up in a policy's order, but leaves first.

    Withdrawing a page cuts off the index whatever was published behind it. So a page whose turn
    comes while others are published behind it *waits* until they are withdrawn, and goes next
    then. What is promised, whatever the policy:

    - As long as there is an idle page with nothing published behind it, giving up a page cuts
      nothing off.
    - Otherwise every idle page is followed by one in use, which `release` and `swap_in` lead to;
      then one goes that no idle page follows directly.

    Where sequences give their pages back whole, or from the end, `lru` and `lfu` rank a page
    behind those that follow it anyhow: it is used whenever they are, and given back after them.
    `fifo` ranks it before them, and gives up a chain from its end when the turn of its first page
    comes.

    Every operation costs as many of the policy's a page, amortised over publications and returns:
    a page is put to wait at most once for each time it becomes idle or another is published
    behind it.

    add(pages): these published pages have become idle, one after the other.
    count_hits(pages): a new sequence starts from these published pages, idle or not.
    """

    def __init__(self, index: PrefixIndex, eviction: Eviction) -> None:
        if eviction not in ORDERS:
            raise ValueError(f"eviction={eviction!r} is none of {', '.join(ORDERS)}")
        self._index = index
        self._order = ORDERS[eviction]()
        self._ranked = self._order.idle
        self.add = self._order.add  # bound here, which spares a call
        self.count_hits = self._order.count_hits
        self._waiting: OrderedDict[int, Entry] = OrderedDict()
        self._waiting_behind: dict[bytes, int] = {}  # by digest: pages that wait directly behind
        self._last_waiting: OrderedDict[int, None] = OrderedDict()  # with none that waits behind

    def __len__(self) -> int:
        return len(self._ranked) + len(self._waiting)

    def __contains__(self, page: int) -> bool:
        return page in self._ranked or page in self._waiting

    def __iter__(self) -> Iterator[int]:
        """In the policy's order; those that wait come first, where they would be without."""
        return chain(self._waiting, self._order)

    def count(self, pages: Sequence[int]) -> int:
        """How many of these are idle."""
        ranked = self._ranked
        num_idle = sum(map(ranked.__contains__, pages))
        if self._waiting:
            num_idle += sum(map(self._waiting.__contains__, pages))
        return num_idle

    def reuse(self, pages: Sequence[int]) -> list[int]:
        """A new sequence maps these published pages; returns those that were in use before."""
        ranked, waiting = self._ranked, self._waiting
        others = [page for page in pages if page not in ranked]
        self._order.remove([page for page in pages if page in ranked] if others else pages)
        if not waiting:
            return others
        mapped = [page for page in others if page not in waiting]
        for page in others:
            if page in waiting:
                self._end_wait(page)
        return mapped

    def refresh(self, page: int) -> None:
        """What this page holds was in use until now; nothing happens unless it is idle."""
        if page in self._ranked:
            self._order.refresh(page)

    def note_published(self, num_pages: int) -> None:
        """The last `num_pages` of the index's pages are new."""
        self._order.note_published(islice(reversed(self._index.published), num_pages))

    def give_up(self, num_pages: int) -> list[int]:
        """Withdraw as many idle pages, or more where others are cut off; there must be as many.
        Returns them: they are neither published nor idle any more."""
        order, ranked, is_followed = self._order, self._ranked, self._index.is_followed
        given_up: list[int] = []
        while len(given_up) < num_pages:
            if ranked:
                page = order.take_first()
                if is_followed(page):
                    self._wait(page)
                    continue
            else:
                page = next(iter(self._last_waiting))
                self._end_wait(page)
            given_up.append(page)
            lost = self.withdraw(page)
            if lost:
                given_up += lost
        return given_up

    def withdraw(self, page: int) -> list[int]:
        """Take a page that is not idle out of the index. Returns the idle pages that were cut off:
        they are neither published nor idle any more."""
        index, order, waiting = self._index, self._order, self._waiting
        before = index.predecessor(page) if waiting else -1
        successor, lost = index.withdraw(page)
        if successor >= 0:
            order.rename(page, successor)
            return []
        order.forget(page)
        if before in waiting and not index.is_followed(before):
            self._end_wait(before)
            order.put_first(before)
        return self._forget_lost(lost) if lost else []

    def _forget_lost(self, lost: Sequence[int]) -> list[int]:
        """Pages that the index has lost are not idle any more; returns those that were."""
        idle = [page for page in lost if page in self]
        self.reuse(idle)
        for page in lost:
            self._order.forget(page)
        return idle

    def check_integrity(self) -> None:
        """Raise AssertionError where the parts disagree."""
        index, waiting = self._index, self._waiting
        ranked = list(self._order)
        assert len(ranked) == len(set(ranked)) and set(ranked) == self._ranked.keys(), "order"
        assert self._ranked.keys().isdisjoint(waiting), "a page waits and does not"
        assert all(index.published[page] == entry for page, entry in waiting.items())
        assert all(index.followers(page) for page in waiting), "a page waits for nothing"
        behind = Counter(entry[1] for entry in waiting.values())
        assert behind == self._waiting_behind, "pages that wait behind others"
        last = {page for page, entry in waiting.items() if entry[0] not in behind}
        assert last == self._last_waiting.keys(), "pages with none that waits behind"

    def _wait(self, page: int) -> None:
        entry = self._index.published[page]
        digest, parent, _ = entry
        self._waiting[page] = entry
        if digest not in self._waiting_behind:
            self._last_waiting[page] = None
        self._waiting_behind[parent] = self._waiting_behind.get(parent, 0) + 1
        self._last_waiting.pop(self._index.page_of.get(parent, -1), None)

    def _end_wait(self, page: int) -> None:
        _, parent, _ = self._waiting.pop(page)
        self._last_waiting.pop(page, None)
        self._waiting_behind[parent] -= 1
        if not self._waiting_behind[parent]:
            del self._waiting_behind[parent]
            before = self._index.page_of.get(parent, -1)
            if before in self._waiting:
                self._last_waiting[before] = None

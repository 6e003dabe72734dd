"""Eviction policies: each against a plain model, and what all promise about leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import get_args

import pytest

from allocators import paged_prefix
from allocators.contract import OperationChooser
from allocators.eviction import MAX_HITS, ORDERS, Eviction, EvictionOrder, FirstInFirstOut
from allocators.idle_pages import IdlePages
from allocators.page_pool import PagePool
from allocators.paged_prefix import PagedPrefix
from allocators.prefix_index import ROOT, PrefixIndex
from allocators.tape import TapeEngine

POLICIES: tuple[Eviction, ...] = get_args(Eviction)


class PlainOrder:
    """What a policy says, by looking at every idle page."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.time = 0
        self.published: dict[int, int] = {}
        self.num_hits: dict[int, int] = {}
        self.idle_since: dict[int, int] = {}

    def rank(self, page: int) -> tuple[int, int]:
        if self.name == "fifo":
            return (0, self.published[page])
        since = self.idle_since[page]
        return (0 if self.name == "lru" else min(self.num_hits[page], MAX_HITS), since)

    def first(self) -> int:
        return min(self.idle_since, key=self.rank)


def drive(name: str, order: EvictionOrder, plain: PlainOrder) -> Iterator[None]:
    """The same random life of up to 40 pages in both; yields after each event."""
    rng = random.Random(name)
    for _ in range(6000):
        plain.time += 1
        mapped = sorted(plain.published.keys() - plain.idle_since.keys())
        idle = sorted(plain.idle_since)
        kind = rng.choice(["publish", "add", "add", "reuse", "refresh", "hit", "evict", "rename"])
        if kind == "publish" and len(plain.published) < 40:
            page = rng.choice(sorted(set(range(60)) - plain.published.keys()))
            plain.published[page], plain.num_hits[page] = plain.time, 0
            order.note_published([page])
        elif kind == "add" and mapped:
            page = rng.choice(mapped)
            plain.idle_since[page] = plain.time
            order.add([page])
        elif kind == "reuse" and idle:
            page = rng.choice(idle)
            del plain.idle_since[page]
            plain.num_hits[page] += 1
            order.remove([page])
            order.count_hits([page])
        elif kind == "refresh" and idle:
            page = rng.choice(idle)
            plain.idle_since[page] = plain.time
            order.refresh(page)
        elif kind == "hit" and plain.published:
            page = rng.choice(sorted(plain.published))
            plain.num_hits[page] += 1
            order.count_hits([page])
            if page in plain.idle_since:
                plain.idle_since[page] = plain.time
                order.refresh(page)
        elif kind == "evict" and idle:
            page = order.take_first()
            assert page == plain.first()
            del plain.published[page], plain.num_hits[page], plain.idle_since[page]
            order.forget(page)
        elif kind == "rename" and mapped:
            page = rng.choice(mapped)
            successor = rng.choice(sorted(set(range(60)) - plain.published.keys()))
            plain.published[successor] = plain.published.pop(page)
            plain.num_hits[successor] = plain.num_hits.pop(page)
            order.rename(page, successor)
        yield


@pytest.mark.parametrize("name", POLICIES)
def test_policy_agrees_with_looking_at_every_page(name: str) -> None:
    order, plain = ORDERS[name](), PlainOrder(name)
    for _ in drive(name, order, plain):
        assert list(order) == sorted(plain.idle_since, key=plain.rank)
        assert order.idle.keys() == plain.idle_since.keys()


def test_lfu_stops_counting() -> None:
    order = ORDERS["lfu"]()
    order.count_hits([1] * (MAX_HITS + 5))
    order.count_hits([2] * MAX_HITS)
    order.count_hits([3] * (MAX_HITS - 1))
    order.add([1, 2, 3])
    assert list(order) == [3, 1, 2]


def test_fifo_is_the_order_of_publication_whatever_the_hits() -> None:
    order = ORDERS["fifo"]()
    order.note_published([3, 2, 1])  # the latest is given first
    order.note_published([4])
    order.add([4, 2, 1])
    order.count_hits([1, 1, 2])
    order.refresh(1)
    assert list(order) == [1, 2, 4]
    assert [order.take_first(), order.take_first(), order.take_first()] == [1, 2, 4]
    order.note_published([5])
    order.add([5, 3])
    assert order.take_first() == 3, "its turn was missed"
    order.put_first(3)
    assert list(order) == [3, 5]


def test_fifo_keeps_no_trace_of_withdrawn_pages() -> None:
    order = FirstInFirstOut()
    for page in range(10_000):
        order.note_published([page])
        order.add([page])
        order.remove([page])
        order.forget(page)
    assert len(order._heap) == len(order._in_heap) <= 65


def test_fifo_line_follows_a_rename_and_a_withdrawal() -> None:
    order = ORDERS["fifo"]()
    order.note_published([3, 2, 1])
    order.rename(1, 9)
    order.forget(2)
    order.note_published([2])
    order.add([2, 3, 9])
    assert list(order) == [9, 3, 2]


class WatchedIdlePages(IdlePages):
    """Compares every eviction with what IdlePages promises."""

    num_given_up = 0
    num_forced = 0
    num_returned = 0
    num_put_to_wait = 0

    def withdraw(self, page: int) -> list[int]:
        index = self._index
        if page in self.evicting:
            idle = {*self, page}
            type(self).num_given_up += 1
            if any(not index.followers(other) for other in idle):
                assert not index.is_followed(page), "cuts pages off without need"
            else:
                type(self).num_forced += 1
                if index.is_followed(page):
                    assert not idle.intersection(index.followers(page)), "a parent before a child"
        return super().withdraw(page)

    def give_up(self, num_pages: int) -> list[int]:
        self.evicting = set(self)
        given_up = super().give_up(num_pages)
        self.evicting = set()
        return given_up

    evicting: set[int] = set()  # noqa: RUF012

    def _wait(self, page: int) -> None:
        type(self).num_put_to_wait += 1
        super()._wait(page)


@pytest.mark.parametrize("eviction", POLICIES)
def test_leaves_go_first(eviction: Eviction, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(WatchedIdlePages):
        pass

    monkeypatch.setattr(paged_prefix, "IdlePages", Watched)
    for seed in range(60):
        rng = random.Random(seed)
        pool = PagePool(rng.randint(5, 14), rng.choice([1, 2]))
        engine = TapeEngine(PagedPrefix(pool, eviction=eviction))
        chooser = OperationChooser(engine, rng)
        for _ in range(150):
            operation = chooser.choose()
            getattr(engine, operation.method)(*operation.arguments)
    assert Watched.num_given_up > 1000
    assert Watched.num_forced > 10, "never short of leaves: the second promise is untested"
    assert Watched.num_put_to_wait > 10


def chain(index: PrefixIndex, pages: list[int], first_token: int) -> None:
    """Publish `pages` one behind the other."""
    parent = ROOT
    for depth, page in enumerate(pages):
        parent = index.publish(page, parent, (first_token + depth,))


@pytest.mark.parametrize("eviction", POLICIES)
def test_a_chain_goes_from_its_end_in_whatever_order_it_became_idle(eviction: Eviction) -> None:
    index = PrefixIndex(1)
    idle = IdlePages(index, eviction)
    chain(index, [0, 1, 2, 3, 4, 5], 10)
    idle.note_published(6)
    idle.add([1, 0, 3, 5, 2, 4])
    idle.check_integrity()
    gone = []
    while len(idle):
        gone += idle.give_up(1)
        idle.check_integrity()
        index.check_integrity()
    assert gone == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("eviction", POLICIES)
def test_no_page_waits_twice_for_the_same_follower(eviction: Eviction) -> None:
    """Work is bounded by what came in: 1000 idle pages behind which one is in use."""

    class Watched(WatchedIdlePages):
        pass

    index = PrefixIndex(1)
    idle = Watched(index, eviction)
    chain(index, list(range(1000)), 0)
    chain(index, list(range(2000, 2500)), 5000)
    idle.note_published(1500)
    idle.add(range(999))
    idle.add(range(2499, 1999, -1))
    for _ in range(500):
        assert idle.give_up(1)[0] >= 2000, "999 is in use, and all others lead to it"
    assert idle.give_up(1) == [998]
    assert 998 <= Watched.num_put_to_wait <= 1000 + 500
    assert idle.give_up(3) == [997, 996, 995]


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="eviction='mru' is none of lru, lfu, fifo"):
        PagedPrefix(PagePool(4, 4), eviction="mru")  # type: ignore[arg-type]

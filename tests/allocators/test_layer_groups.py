"""Groups of layers over one pool: each group keeps the contract, whatever the others do."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from allocators.base import KVCacheAllocator, Usage
from allocators.contiguous import Contiguous
from allocators.discovery import available
from allocators.endurance import endure
from allocators.layer_groups import LayerGroups
from allocators.page_pool import PagePool
from allocators.paged import Paged
from allocators.replay import Build

SHARING = [cls for cls in available().values() if cls.shares_pool]


class OneGroup(LayerGroups):
    """Groups seen through the tables of one of them, which alone slides a window."""

    def __init__(self, first: KVCacheAllocator, num_groups: int, group: int) -> None:
        super().__init__(first, num_groups)
        self._seen = self.layer_groups[group]

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self._seen.block_table(seq_id)

    def release(self, seq_id: int, upto: int) -> None:
        self._seen.release(seq_id, upto)

    def usage(self) -> Usage:
        mapped, cached = len(self._seen.mapped_pages()), super().usage().cached
        return Usage(mapped, cached, self.pool.num_pages - mapped - cached)


def builder(cls: type[KVCacheAllocator], group: int) -> Build:
    return lambda: OneGroup(cls(PagePool(48, 4)), 2, group)


@pytest.mark.parametrize("faults", [False, True], ids=["calm", "faults"])
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("cls", SHARING)
def test_a_long_life_in_every_group(cls: type[KVCacheAllocator], group: int, faults: bool) -> None:
    life = endure(builder(cls, group), num_steps=5_000, faults=faults)
    assert life.failure is not None, "it ends by trying for all pages: half are not this group's"
    assert life.failure.message == "at the end 24 of 48 pages could be allocated", (
        life.failure.message,
        life.failure.story[-20:],
    )
    assert life.num_steps >= 5_000
    assert min(life.granted.values()) >= 10, life.granted


@pytest.mark.parametrize("cls", SHARING)
def test_pages_go_where_they_are_needed(cls: type[KVCacheAllocator]) -> None:
    groups = LayerGroups(cls(PagePool(10, 4)), 2)
    assert groups.allocate(0, range(12), 40, 0) is not None
    assert groups.usage().mapped == 6
    assert groups.append(0, 8) is not None and groups.usage().mapped == 10
    assert groups.append(0) is None and groups.usage().mapped == 10
    groups.layer_groups[1].release(0, 16)
    assert groups.append(0, 8) is not None
    tables = [group.block_table(0) for group in groups.layer_groups]
    assert -1 not in tables[0] and tables[1][:4] == [-1] * 4
    assert groups.usage().mapped == 7 + 3
    groups.check_integrity()


def test_a_hit_is_what_every_group_has() -> None:
    pool = PagePool(40, 4)
    groups = LayerGroups(available()["paged_prefix"](pool), 2)
    prompt = list(range(17))
    assert groups.allocate(0, prompt, 40, 0) is not None
    groups.commit(0, prompt)
    groups.free(0)
    again = groups.allocate(1, prompt, 40, 0)
    assert again is not None and again.num_cached_tokens == 16
    second = groups.layer_groups[1]
    others = [random.Random(1).randrange(100, 200) for _ in range(17)]
    assert second.num_cached(prompt) == 16 and second.num_cached(others) == 0
    assert second.allocate(7, others, 40, 0) is not None  # one group alone knows it
    second.commit(7, others)
    assert second.num_cached(others) == 16
    both = groups.allocate(2, others, 40, 0)
    assert both is not None and both.num_cached_tokens == 0


def test_a_strategy_that_needs_the_whole_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous cannot share its pool"):
        LayerGroups(Contiguous(PagePool(8, 4)), 2)


def test_what_append_takes_must_be_said_before() -> None:
    class Understated(Paged):
        def pages_to_append(self, seq_id: int, num_tokens: int) -> int:
            return 0

    groups = LayerGroups(Understated(PagePool(5, 4)), 2)
    assert groups.allocate(0, range(8), 40, 0) is not None
    with pytest.raises(RuntimeError, match="pages_to_append"):
        groups.append(0)

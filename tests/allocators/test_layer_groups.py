"""Groups of layers over one pool: each group keeps the contract, whatever the others do."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from allocators.base import KVCacheAllocator, Usage
from allocators.contiguous import Contiguous
from allocators.contract import option_sets
from allocators.discovery import available
from allocators.endurance import endure
from allocators.layer_groups import LayerGroups
from allocators.page_pool import PagePool
from allocators.paged import Paged
from allocators.paged_prefix import PagedPrefix
from allocators.replay import Build

STRATEGIES = [
    pytest.param(cls, choice, id="-".join([cls.name, *choice.values()]))
    for cls in available().values()
    if cls.shares_pool
    for choice in option_sets(cls)
]


class OneGroup(LayerGroups):
    """Groups seen through the tables of one of them, which alone slides a window."""

    def __init__(self, groups: Sequence[KVCacheAllocator], group: int) -> None:
        super().__init__(groups)
        self._seen = self.layer_groups[group]

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self._seen.block_table(seq_id)

    def release(self, seq_id: int, upto: int) -> None:
        self._seen.release(seq_id, upto)

    def usage(self) -> Usage:
        mapped, cached = len(self._seen.mapped_pages()), super().usage().cached
        return Usage(mapped, cached, self.pool.num_pages - mapped - cached)


def builder(
    cls: type[KVCacheAllocator], choice: dict[str, object], num_groups: int, group: int
) -> Build:
    def build() -> OneGroup:
        pool = PagePool(24 * num_groups, 4)
        return OneGroup([cls(pool, **choice) for _ in range(num_groups)], group)

    return build


@pytest.mark.parametrize("faults", [False, True], ids=["calm", "faults"])
@pytest.mark.parametrize(("num_groups", "group"), [(2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(("cls", "choice"), STRATEGIES)
def test_a_long_life_in_every_group(
    cls: type[KVCacheAllocator],
    choice: dict[str, object],
    num_groups: int,
    group: int,
    faults: bool,
) -> None:
    life = endure(builder(cls, choice, num_groups, group), num_steps=6_000, faults=faults)
    assert life.failure is not None, "it ends by trying for all pages: not all are this group's"
    assert life.failure.message == f"at the end 24 of {24 * num_groups} pages could be allocated", (
        life.failure.message,
        life.failure.story[-20:],
    )
    assert life.num_steps >= 6_000
    assert min(life.granted.values()) >= 4, life.granted


@pytest.mark.parametrize(("cls", "choice"), STRATEGIES)
def test_pages_go_where_they_are_needed(
    cls: type[KVCacheAllocator], choice: dict[str, object]
) -> None:
    pool = PagePool(10, 4)
    groups = LayerGroups([cls(pool, **choice), cls(pool, **choice)])
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
    groups = LayerGroups([PagedPrefix(pool), PagedPrefix(pool)])
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


class Ahead(PagedPrefix):
    """Takes pages ahead of need, and so more than it inherits the saying of."""

    name = "ahead"

    def __init__(self, pool: PagePool, pages_ahead: int = 1) -> None:
        super().__init__(pool)
        self.pages_ahead = pages_ahead


class Said(Ahead):
    name = "said"
    shares_pool = True


@pytest.mark.parametrize("cls", [Contiguous, Ahead])
def test_a_strategy_that_does_not_say_so_is_refused(cls: type[KVCacheAllocator]) -> None:
    pool = PagePool(8, 4)
    with pytest.raises(ValueError, match=f"{cls.name} cannot share its pool"):
        LayerGroups([cls(pool), cls(pool)])


def test_a_subclass_finds_what_its_groups_have_cached() -> None:
    pool = PagePool(40, 4)
    groups = LayerGroups([Said(pool, 5), Said(pool, 5)])
    prompt = list(range(17))
    assert groups.allocate(0, prompt, 40, 0) is not None
    groups.commit(0, prompt)
    groups.free(0)
    again = groups.allocate(1, prompt, 40, 0)
    assert again is not None and again.num_cached_tokens == 16


def test_what_append_takes_must_be_said_before() -> None:
    class Understated(Paged):
        shares_pool = True

        def pages_to_append(self, seq_id: int, num_tokens: int) -> int:
            return 0

    pool = PagePool(5, 4)
    groups = LayerGroups([Understated(pool), Understated(pool)])
    assert groups.allocate(0, range(8), 40, 0) is not None
    with pytest.raises(RuntimeError, match="pages_to_append"):
        groups.append(0)

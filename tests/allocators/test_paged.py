"""Paged allocation and copy-on-write: worked examples and the rules that the tape can't see."""

from __future__ import annotations

import pytest

from allocators.base import NULL_PAGE, UNCHANGED, Allocation, KVCacheAllocator, PageCopy, Usage
from allocators.discovery import available
from allocators.page_pool import PagePool
from allocators.paged import Paged
from allocators.paged_cow import PagedCopyOnWrite


def test_seven_tokens_on_pages_of_four() -> None:
    """PagedAttention, figure 6: a 7-token prompt takes two pages, the eighth token fills the
    second, the ninth takes a third."""
    allocator = Paged(PagePool(10, 4))
    assert allocator.allocate(0, range(7), 20, 0) == Allocation()
    assert allocator.block_table(0) == [0, 1]
    assert allocator.append(0) is UNCHANGED
    assert allocator.append(0) == Allocation(first_changed=2)
    assert allocator.block_table(0) == [0, 1, 2]
    assert allocator.usage() == Usage(mapped=3, cached=0, free=7)


def test_ten_requests_share_a_200_token_prompt() -> None:
    """13 pages of 16 in place of 130; the first writes copy only the partly filled last one."""
    allocator = PagedCopyOnWrite(PagePool(200, 16))
    allocator.allocate(0, range(200), 300, 0)
    for child in range(1, 10):
        assert allocator.fork(0, child, 300, 0) == Allocation(200)
    assert allocator.usage().mapped == 13
    last = allocator.block_table(0)[12]
    for seq_id in range(9):
        outcome = allocator.append(seq_id)
        assert outcome is not None and outcome.first_changed == 12
        assert outcome.copies == (PageCopy(last, allocator.block_table(seq_id)[12]),)
    assert allocator.append(9) is UNCHANGED, "the last one to write has the page to itself"
    assert allocator.usage().mapped == 12 + 10
    tables = [allocator.block_table(seq_id) for seq_id in range(10)]
    assert all(table[:12] == tables[0][:12] for table in tables)
    assert len({table[12] for table in tables}) == 10


def test_copy_on_write_is_refused_whole() -> None:
    allocator = PagedCopyOnWrite(PagePool(2, 4))
    allocator.allocate(0, range(5), 8, 0)
    allocator.fork(0, 1, 8, 0)
    assert allocator.append(1) is None
    assert allocator.block_table(1) == [0, 1]
    allocator.free(0)
    assert allocator.append(1) is UNCHANGED


def test_long_append_copies_and_grows_at_once() -> None:
    allocator = PagedCopyOnWrite(PagePool(8, 4))
    allocator.allocate(0, range(6), 20, 0)
    allocator.fork(0, 1, 20, 0)
    assert allocator.append(1, 5) == Allocation(0, (PageCopy(1, 2),), 1)
    assert allocator.block_table(1) == [0, 2, 3]


def test_fork_truncate_append_shares_the_declared_prefix() -> None:
    allocator = PagedCopyOnWrite(PagePool(20, 4))
    allocator.allocate(0, range(30), 40, 0)
    allocator.fork(0, 1, 40, 0)
    allocator.truncate(1, 10)
    assert allocator.append(1, 3) == Allocation(0, (PageCopy(2, 8),), 2)
    assert allocator.block_table(1) == [0, 1, 8, 9]


def test_estimate_is_reserved_and_survives_truncation() -> None:
    allocator = Paged(PagePool(10, 4))
    allocator.allocate(0, range(3), 40, 17)
    assert len(allocator.block_table(0)) == 5
    allocator.append(0, 4)
    allocator.truncate(0, 1)
    assert len(allocator.block_table(0)) == 5
    assert allocator.append(0, 16) is UNCHANGED
    allocator.append(0, 9)
    allocator.truncate(0, 18)
    assert len(allocator.block_table(0)) == 5


def test_estimate_never_reserves_past_the_bound() -> None:
    allocator = Paged(PagePool(10, 4))
    allocator.allocate(0, range(3), 8, 1000)
    assert len(allocator.block_table(0)) == 2


def test_fork_reserves_its_own_estimate() -> None:
    allocator = PagedCopyOnWrite(PagePool(10, 4))
    allocator.allocate(0, range(4), 20, 12)
    allocator.fork(0, 1, 20, 8)
    assert allocator.block_table(0) == [0, 1, 2]
    assert allocator.block_table(1) == [0, 3]


def test_released_pages_come_back_at_once() -> None:
    allocator = Paged(PagePool(4, 4))
    allocator.allocate(0, range(15), 16, 0)
    allocator.release(0, 9)
    assert allocator.block_table(0) == [NULL_PAGE, NULL_PAGE, 2, 3]
    assert allocator.usage().free == 2
    with pytest.raises(ValueError, match="first 8 are released"):
        allocator.truncate(0, 5)
    allocator.free(0)
    assert allocator.usage().free == 4


def test_beam_step_needs_no_page() -> None:
    allocator = PagedCopyOnWrite(PagePool(4, 4))
    allocator.allocate(0, range(5), 8, 0)
    allocator.fork(0, 1, 8, 0)
    allocator.append(1)
    allocator.append(0)
    allocator.fork(0, 2, 8, 0)
    allocator.append(2)
    allocator.truncate(2, 6)
    assert allocator.usage().free == 0
    assert allocator.rebranch({0: 1, 1: 0, 2: 1}) is not None
    assert allocator.block_table(0) == allocator.block_table(2) == [0, 2]
    assert allocator.block_table(1) == [0, 1]
    assert allocator.usage() == Usage(3, 0, 1)


def test_beams_of_different_length_are_an_error() -> None:
    allocator = PagedCopyOnWrite(PagePool(4, 4))
    allocator.allocate(0, range(5), 8, 0)
    allocator.allocate(1, range(4), 8, 0)
    with pytest.raises(ValueError, match="differ in length"):
        allocator.rebranch({0: 1})


def test_swap_restores_sharing() -> None:
    allocator = PagedCopyOnWrite(PagePool(8, 4))
    allocator.allocate(0, range(10), 12, 0)
    allocator.fork(0, 1, 12, 0)
    allocator.append(1)
    allocator.swap_out([0, 1])
    assert allocator.usage().free == 8
    allocator.allocate(5, range(6), 8, 0)
    assert allocator.swap_in([0, 1]) is not None
    first, second = allocator.block_table(0), allocator.block_table(1)
    assert first[:2] == second[:2] and first[2] != second[2]
    assert allocator.usage().mapped == 2 + 4


def test_swap_in_is_all_or_nothing() -> None:
    allocator = PagedCopyOnWrite(PagePool(4, 4))
    allocator.allocate(0, range(8), 8, 0)
    allocator.allocate(1, range(8), 8, 0)
    allocator.swap_out([0, 1])
    allocator.allocate(2, range(4), 4, 0)
    assert allocator.swap_in([0, 1]) is None
    assert allocator.swap_in([1]) is not None
    with pytest.raises(KeyError, match="not swapped out"):
        allocator.swap_in([1])


@pytest.mark.parametrize("cls", available().values())
class TestErrors:
    """What an engine must never do says what went wrong."""

    def test_unknown_sequence(self, cls: type[KVCacheAllocator]) -> None:
        allocator = cls(PagePool(4, 4))
        allocator.allocate(0, [1], 4, 0)
        for call in (
            lambda: allocator.append(7),
            lambda: allocator.free(7),
            lambda: allocator.block_table(7),
            lambda: allocator.truncate(7, 0),
            lambda: allocator.fork(7, 8, 4, 0),
            lambda: allocator.rebranch({0: 7}),
            lambda: allocator.swap_out([7]),
            lambda: allocator.swap_in([0]),
        ):
            with pytest.raises(KeyError, match=r"sequence \d is not"):
                call()
        assert allocator.usage().mapped == 1
        allocator.check_integrity()

    def test_live_sequence(self, cls: type[KVCacheAllocator]) -> None:
        allocator = cls(PagePool(4, 4))
        allocator.allocate(0, [1], 4, 0)
        with pytest.raises(ValueError, match="allocated already"):
            allocator.allocate(0, [1], 4, 0)
        with pytest.raises(ValueError, match="allocated already"):
            allocator.fork(0, 0, 4, 0)

    def test_nothing_to_hold(self, cls: type[KVCacheAllocator]) -> None:
        allocator = cls(PagePool(4, 4))
        with pytest.raises(ValueError, match="at least one"):
            allocator.allocate(0, [], 4, 0)
        allocator.allocate(0, [1], 4, 0)
        with pytest.raises(ValueError, match="append 0 tokens"):
            allocator.append(0, 0)
        with pytest.raises(ValueError, match="cannot truncate"):
            allocator.truncate(0, 2)


@pytest.mark.parametrize("name", ["paged", "paged_cow", "paged_prefix"])
def test_watermark_counts_what_is_left(name: str) -> None:
    allocator = available()[name](PagePool(4, 4))
    assert allocator.allocate(0, range(12), 16, 0, keep_free=2) is None
    assert allocator.allocate(0, range(8), 16, 0, keep_free=2) is not None


def test_pool_hands_out_in_order_and_takes_back_last_in_first_out() -> None:
    pool = PagePool(5, 4)
    assert pool.take(3) == [0, 1, 2]
    assert pool.take(0) == []
    assert pool.take(2, keep_free=1) is None
    pool.put_back([1, 2])
    assert pool.take(3) == [1, 2, 3]
    assert pool.take(1) == [4] and pool.take(1) is None


@pytest.mark.parametrize("size", [(0, 16), (4, 0)])
def test_empty_pool_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(*size)

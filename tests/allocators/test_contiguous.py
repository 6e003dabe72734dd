"""Contiguous reservations: buddy and fitted placement."""

from __future__ import annotations

import random

import pytest

from allocators.base import UNCHANGED, Allocation, PageCopy, Usage
from allocators.contiguous import Contiguous
from allocators.extents import BuddyPlacer, FittedPlacer, RunPlacer
from allocators.page_pool import PagePool
from allocators.paged import Paged


def test_buddy_rounds_up_to_a_power_of_two() -> None:
    """Page 16, prompt 40, output 25 rounded up to 32: asked 72 tokens, granted 128."""
    allocator = Contiguous(PagePool(983, 16))
    allocator.allocate(0, range(40), 64, 0)
    allocator.free(0)
    allocator.allocate(0, range(40), 2048, 72)
    assert len(allocator.block_table(0)) * 16 == 128
    assert allocator.pages_needed(range(40), 72) == 5
    assert allocator.append(0, 88) is UNCHANGED


def test_buddy_starts_from_powers_of_two() -> None:
    sizes = [length for _, length in BuddyPlacer(983).free_runs()]
    assert sizes == [512, 256, 128, 64, 16, 4, 2, 1]
    assert Contiguous(PagePool(983, 16)).max_sequence_pages == 512


def test_buddies_come_together_again() -> None:
    placer = BuddyPlacer(16)
    runs = [placer.take(1) for _ in range(16)]
    assert placer.take(1) is None
    random.Random(3).shuffle(runs)
    for run in runs:
        assert run is not None
        placer.put_back(*run)
    assert placer.free_runs() == [(0, 16)]


def test_buddy_grows_into_its_free_right_buddy_only() -> None:
    allocator = Contiguous(PagePool(8, 4))
    allocator.allocate(0, range(8), 32, 0)
    allocator.allocate(1, range(8), 32, 0)
    assert allocator.block_table(1) == [2, 3]
    assert allocator.append(1) is None, "its buddy lies to the left"
    allocator.free(1)
    assert allocator.append(0, 9) == Allocation(first_changed=2)
    assert allocator.block_table(0) == list(range(8))


def test_first_fit_takes_the_lowest_and_best_fit_the_tightest() -> None:
    def with_holes(fit: str) -> Contiguous:
        allocator = Contiguous(PagePool(12, 1), fit)  # type: ignore[arg-type]
        for seq_id, size in enumerate([4, 1, 2, 1]):
            allocator.allocate(seq_id, range(size), 12, 0)
        allocator.free(0)
        allocator.free(2)
        return allocator

    first, best = with_holes("first_fit"), with_holes("best_fit")
    for allocator in (first, best):
        allocator.allocate(9, range(2), 12, 0)
    assert first.block_table(9) == [0, 1]
    assert best.block_table(9) == [5, 6]


def test_fitted_run_grows_into_free_neighbours() -> None:
    allocator = Contiguous(PagePool(8, 2), "first_fit")
    for seq_id in range(3):
        allocator.allocate(seq_id, range(4), 16, 0)
    assert allocator.append(0) is None
    allocator.free(1)
    assert allocator.append(0, 3) == Allocation(first_changed=2)
    assert allocator.block_table(0) == [0, 1, 2, 3]
    assert allocator.append(0, 2) is None
    assert allocator.append(2, 4) == Allocation(first_changed=2)
    assert allocator.usage() == Usage(8, 0, 0)


def test_reservation_is_the_estimate_capped_at_the_bound() -> None:
    allocator = Contiguous(PagePool(100, 1), "first_fit")
    for seq_id, (length, max_len, expected_len, granted) in enumerate(
        [(3, 10, 0, 3), (3, 10, 7, 7), (3, 10, 50, 10), (8, 10, 5, 8)]
    ):
        allocator.allocate(seq_id, range(length), max_len, expected_len)
        assert len(allocator.block_table(seq_id)) == granted


def test_fork_copies_whole_pages() -> None:
    allocator = Contiguous(PagePool(16, 4), "first_fit")
    allocator.allocate(0, range(6), 20, 0)
    outcome = allocator.fork(0, 1, 20, 12)
    assert outcome == Allocation(6, (PageCopy(0, 2), PageCopy(1, 3)))
    assert allocator.block_table(1) == [2, 3, 4]


def test_unknown_fit_and_a_shared_pool_are_refused() -> None:
    with pytest.raises(ValueError, match="none of buddy"):
        Contiguous(PagePool(4, 4), "worst_fit")  # type: ignore[arg-type]
    pool = PagePool(4, 4)
    Paged(pool).allocate(0, [1], 4, 0)
    with pytest.raises(ValueError, match="whole pool: 3 of 4"):
        Contiguous(pool)


@pytest.mark.parametrize("fit", ["buddy", "first_fit", "best_fit"])
@pytest.mark.parametrize("num_pages", [1, 7, 64, 983])
def test_runs_agree_with_a_bitmap(fit: str, num_pages: int) -> None:
    """Runs never overlap, refusals are true, and everything coalesces in the end."""
    rng = random.Random(num_pages)
    placer: RunPlacer = (
        BuddyPlacer(num_pages) if fit == "buddy" else FittedPlacer(num_pages, fit == "best_fit")
    )
    whole = placer.free_runs()
    taken = [False] * num_pages
    runs: list[tuple[int, int]] = []
    for _ in range(600):
        action = rng.random()
        if action < 0.5:
            size = rng.randint(1, max(1, num_pages // 5))
            run = placer.take(size)
            if run is None:
                if fit != "buddy":
                    free = "".join("x" if page else "." for page in taken)
                    assert "." * size not in free
                continue
            start, granted = run
            assert granted >= size and not any(taken[start : start + granted])
            taken[start : start + granted] = [True] * granted
            runs.append(run)
        elif runs and action < 0.7:
            index = rng.randrange(len(runs))
            start, granted = runs[index]
            grown = placer.grow(start, granted, granted + rng.randint(1, 4))
            if grown is not None:
                assert not any(taken[start + granted : start + grown])
                taken[start : start + grown] = [True] * grown
                runs[index] = (start, grown)
        elif runs:
            start, granted = runs.pop(rng.randrange(len(runs)))
            placer.put_back(start, granted)
            taken[start : start + granted] = [False] * granted
        free_pages = [page for s, n in placer.free_runs() for page in range(s, s + n)]
        assert free_pages == [page for page in range(num_pages) if not taken[page]]
        assert placer.num_free == len(free_pages)
    for run in runs:
        placer.put_back(*run)
    assert placer.free_runs() == whole

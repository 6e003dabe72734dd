"""Whatever a strategy hands out is checked before the engine makes use of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from simulated_run import ALLOCATORS, Setup, SimulatedRun, branching, random_requests, request

from allocators import discovery
from allocators.base import (
    UNCHANGED,
    Allocation,
    KVCacheAllocator,
    SequenceState,
    Usage,
)
from allocators.contract import random_operations
from allocators.page_pool import PagePool
from allocators.paged_prefix import PagedPrefix
from harness.engine.allocator_call import AllocatorError
from harness.engine.checked_allocator import CheckedAllocator, checked
from harness.engine.page_book import PageBook
from harness.engine.scheduling.speculation import SpeculationConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "allocators"))
import broken


class Short(KVCacheAllocator):
    """The shortest allocator, whose parts can be made wrong one by one."""

    name: ClassVar[str] = "short"

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        pages = self.pool.take(self.pages_for(len(token_ids)), keep_free)
        if pages is None:
            return None
        self.sequences[seq_id] = SequenceState(pages, len(token_ids), max_len, expected_len)
        return self.given(token_ids)

    def given(self, token_ids: Sequence[int]) -> Any:
        return Allocation()

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        missing = self.pages_for(sequence.length + num_tokens) - len(sequence.page_ids)
        if missing > 0:
            pages = self.pool.take(missing)
            if pages is None:
                return None
            sequence.page_ids += pages
        sequence.length += num_tokens
        return Allocation()

    def free(self, seq_id: int) -> None:
        self.pool.put_back(self.sequences.pop(seq_id).page_ids)

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.sequences[seq_id].page_ids

    def usage(self) -> Usage:
        return Usage(self.pool.num_pages - self.pool.num_free, 0, self.pool.num_free)


class SamePages(Short):
    """All sequences on the same pages."""

    def allocate(self, seq_id: int, token_ids: Sequence[int], *rest: Any) -> Allocation | None:
        pages = list(range(self.pages_for(len(token_ids))))
        self.sequences[seq_id] = SequenceState(pages, len(token_ids), *rest[:2])
        return Allocation()

    def free(self, seq_id: int) -> None:
        del self.sequences[seq_id]

    def usage(self) -> Usage:
        mapped = len(self.mapped_pages())
        return Usage(mapped, 0, self.pool.num_pages - mapped)


class TwiceInOneTable(Short):
    def allocate(self, seq_id: int, token_ids: Sequence[int], *rest: Any) -> Allocation | None:
        given = super().allocate(seq_id, token_ids, *rest)
        if given is not None:
            state = self.sequences[seq_id]
            state.page_ids = [state.page_ids[0]] * len(state.page_ids)
        return given


class PastThePool(Short):
    def block_table(self, seq_id: int) -> Sequence[int]:
        return [page + self.pool.num_pages for page in super().block_table(seq_id)]


class TooShort(Short):
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        self.sequences[seq_id].length += num_tokens
        return Allocation()


class FreesTwice(Short):
    def free(self, seq_id: int) -> None:
        pages = self.sequences.pop(seq_id).page_ids
        self.pool.put_back(pages)
        self.pool.put_back(pages)

    def usage(self) -> Usage:
        mapped = len(self.mapped_pages())
        return Usage(mapped, 0, self.pool.num_pages - mapped)


class RewritesInSilence(Short):
    """Moves a page that holds tokens, and says nothing."""

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        given = super().append(seq_id, num_tokens)
        table = self.sequences[seq_id].page_ids
        if len(table) > 2:
            table[0], table[1] = table[1], table[0]
        return given


class RewritesTheLastPage(Short):
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        table = self.sequences[seq_id].page_ids
        moved = self.pool.take(1) if self.sequences[seq_id].length % self.page_size else None
        if moved:
            self.pool.put_back([table[-1]])
            table[-1] = moved[0]
        return super().append(seq_id, num_tokens)


class Raises(Short):
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        raise OSError(28, "No space left on device")


class Recurses(Short):
    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        return self.append(seq_id, num_tokens)


class SaysTrue(Short):
    def given(self, token_ids: Sequence[int]) -> Any:
        return True


class ReturnsFloats(Short):
    def block_table(self, seq_id: int) -> Sequence[int]:
        return [float(page) for page in super().block_table(seq_id)]  # type: ignore[misc]


def claiming(count: Callable[[int], int], base: type = Short) -> type[KVCacheAllocator]:
    class Claims(base):  # type: ignore[misc]
        def allocate(self, seq_id: int, token_ids: Sequence[int], *rest: Any) -> Any:
            given = super().allocate(seq_id, token_ids, *rest)
            return given and given._replace(num_cached_tokens=count(len(token_ids)))

        def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
            super().commit(seq_id, token_ids)

    return Claims


def using(usage: Callable[[int, int], tuple[int, int, int]]) -> type[KVCacheAllocator]:
    class Uses(Short):
        def usage(self) -> Usage:
            mapped = self.pool.num_pages - self.pool.num_free
            return Usage(*usage(mapped, self.pool.num_free))

    return Uses


FAULTS: Mapping[str, tuple[type[KVCacheAllocator], str]] = {
    "all sequences on the same pages": (SamePages, r"handed out page 0, which sequence 0 maps"),
    "a page twice in one table": (TwiceInOneTable, r"mapped a page twice"),
    "pages past the pool": (PastThePool, r"mapped page 40: the pool has pages 0 to 39"),
    "a table that is too short": (TooShort, r"append\(0, 1\) left a block table of 3 pages of 4"),
    "a page freed twice": (FreesTwice, r"handed out page \d+, which sequence \d+ maps"),
    "a table rewritten in silence": (RewritesInSilence, r"free\(0\) finds the block table of"),
    "the page that is written moved": (RewritesTheLastPage, r"replaced page \d+, which holds"),
    "an error of its own": (Raises, r"append\(0, 1\) raised OSError: .*No space left"),
    "an endless recursion": (Recurses, r"append\(0, 1\) raised RecursionError"),
    "no Allocation": (SaysTrue, r"returned True: neither an Allocation nor None"),
    "pages that are no int": (ReturnsFloats, r"mapped page \d+\.0"),
    "more cached than there is": (claiming(lambda n: 2 * n), r"num_cached_tokens=18: 0 to 8"),
    "the whole prompt cached": (claiming(lambda n: n), r"num_cached_tokens=9: 0 to 8"),
    "fewer than none cached": (claiming(lambda n: -3), r"num_cached_tokens=-3"),
    "all cached that may be": (claiming(lambda n: n - 1), r"claims that 8 tokens are cached"),
    "hits of another prompt": (
        claiming(lambda n: n - 1, PagedPrefix),
        r"claims that \d+ tokens are cached, but page \d+ \(tokens \d+ to \d+\) holds nothing",
    ),
    "usage past the pool": (using(lambda m, f: (m + f + 5, 0, -5)), r"the pool has 40 pages"),
    "more cached than is free": (using(lambda m, f: (m, f + 7, -7)), r"the pool has 40 pages"),
    "cached without any reuse": (using(lambda m, f: (m, f, 0)), r"only 0 pages .* hold computed"),
    "less mapped than tables map": (using(lambda m, f: (0, 0, m + f)), r"block tables map 9 pages"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_run_and_names_allocator_call_and_value(fault: str) -> None:
    allocator, message = FAULTS[fault]
    requests = [request(i, 9, 6, arrival_s=30.0 * (i > 2)) for i in range(5)]
    with pytest.raises(AllocatorError, match=rf"allocator \w+: .*{message}"):
        SimulatedRun(Setup(allocator, num_pages=40, page_size=4)).run(requests)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_no_built_in_strategy_is_found_at_fault(
    allocator: str, options: dict[str, Any], seed: int
) -> None:
    """Over everything that an engine may ask; what is built in keeps the contract."""

    def build() -> KVCacheAllocator:
        pool = PagePool(7 + seed, (1, 4)[seed % 2])
        own = discovery.build(allocator, pool, **options)
        return checked([own], PageBook(pool.num_pages, pool.page_size))

    engine_steps = list(random_operations(build, random.Random(seed), 300))
    assert len(engine_steps) == 300


FOUND_IN_RUNS = (
    "ForgetsToCopyOnWrite", "ForgetsToSayCopy", "LeaksOnFree", "EvictsReferencedPage",
    "HandsOutPageTwice", "PublishesBeforeComputed", "IgnoresEarlierTokens", "CachesWholePrompt",
    "MixesUpBeams", "MiscountsUsage", "DropsPageTwice", "NeverRefuses", "PrunesPageStillRead",
    "TruncatesSharedPageTwice", "MixesUpSwappedPages", "ReleasesForkedPage", "RefusesHalfWay",
    "ReleasesPartialPage",
)  # fmt: skip
"""Of the broken strategies that the contract test must find; the rest leak pages, ignore the
watermark or change on a refusal, which takes room but gives no wrong answer."""


@pytest.mark.parametrize("class_name", FOUND_IN_RUNS)
def test_a_strategy_that_breaks_the_contract_is_found_in_a_run(class_name: str) -> None:
    with pytest.raises(AllocatorError, match="allocator"):
        for seed in range(40):
            run_somehow(getattr(broken, class_name), seed)


def run_somehow(allocator: type[KVCacheAllocator], seed: int) -> None:
    """A small run in one of many ways of decoding, with little room."""
    rng = random.Random(seed)
    setup = Setup(
        allocator,
        num_pages=rng.choice([16, 30]),
        preemption=rng.choice(["recompute", "swap"]),
        host_pages=100,
        windows=rng.choice([(None,), (9,)]),
        speculation=SpeculationConfig(("none", "injected")[seed % 2], num_tokens=3),
    )
    requests = random_requests(seed, shared_len=9, chat=seed % 4 == 0, num_requests=12)
    SimulatedRun(setup).run(requests if seed % 2 else branching(requests, seed))


class Counting(Short):
    def block_table(self, seq_id: int) -> Sequence[int]:
        return Watched(super().block_table(seq_id))


class Watched(list[int]):
    """A block table that counts the entries read of it."""

    num_read = 0

    def __getitem__(self, index: Any) -> Any:
        Watched.num_read += len(range(len(self))[index]) if isinstance(index, slice) else 1
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        Watched.num_read += len(self)
        return super().__iter__()


@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_a_token_costs_the_same_whatever_the_length(num_tokens: int) -> None:
    """The shortest allocator says nothing of its tables, and few entries of them are read."""
    allocator = checked([Counting(PagePool(200, 16))], PageBook(200, 16))
    assert allocator.allocate(0, range(num_tokens), 2 * num_tokens, 0) is not None
    Watched.num_read = 0
    for _ in range(64):
        assert allocator.append(0) is not None
    assert Watched.num_read <= 64 + 4 * 4


def test_what_the_border_says_of_a_table_is_exact() -> None:
    allocator = checked([Short(PagePool(20, 4))], PageBook(20, 4))
    assert allocator.allocate(0, range(6), 40, 0) == Allocation(0, (), 0)
    assert allocator.append(0) is UNCHANGED
    assert allocator.append(0) is UNCHANGED
    assert allocator.append(0) == Allocation(0, (), 2)
    assert allocator.append(0, 9) == Allocation(0, (), 3)


def test_every_call_of_the_contract_is_passed_on() -> None:
    helpers = {"pages_for", "check_new", "layer_groups"}
    public = {name for name in vars(KVCacheAllocator) if not name.startswith("_")}
    assert public - helpers <= vars(CheckedAllocator).keys()


def test_the_time_that_a_strategy_takes_is_counted() -> None:
    book = PageBook(16, 4)
    inner = PagedPrefix(PagePool(16, 4))
    allocator = checked([inner], book)
    allocator.allocate(0, range(9), 20, 0)
    allocator.commit(0, range(9))
    allocator.fork(0, 1, 20, 0)
    allocator.rebranch({1: 0})
    allocator.release(1, 4)
    allocator.swap_out([1])
    allocator.swap_in([1])
    assert allocator.mapped_pages() == inner.mapped_pages()
    allocator.swap_out([1])
    allocator.discard_swapped(1)
    allocator.truncate(0, 8)
    allocator.append(0)
    allocator.check_integrity()
    assert book.host_ns > 0
    allocator.free(0)
    assert allocator.usage() == inner.usage() and allocator.usage().mapped == 0

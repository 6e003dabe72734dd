"""Cases small enough to check with a pencil."""

from __future__ import annotations

from simulated_run import Setup, SimulatedRun, request

from allocators.page_pool import PagePool
from allocators.paged_cow import PagedCopyOnWrite
from harness.engine.memory_events import Extent
from harness.engine.plan import TableUpdate
from harness.measure.ledger import Ledger, LedgerEntry

KIB, MIB, GIB = 2**10, 2**20, 2**30


def classes(entry: LedgerEntry) -> dict[str, int]:
    """The classes that are not empty, without `free`."""
    named = entry._asdict()
    return {name: named[name] for name in LedgerEntry._fields[:8] if named[name]}


def test_prompt_of_7_with_pages_of_4() -> None:
    # PagedAttention, figure 6: two pages, the eighth slot is for the first output token's KV
    run = SimulatedRun(Setup(num_pages=4, page_size=4)).run([request(0, 7, 4)])
    assert [classes(entry) for entry in run.recorder.sink.entries] == [
        {"token": 7, "reserved": 1},
        {"token": 8},
        {"token": 9, "reserved": 1, "tail": 2},
        {"token": 10, "tail": 2},
    ]
    assert [entry.free for entry in run.recorder.sink.entries] == [8, 8, 4, 4]


def test_prompt_of_7_with_one_output_leaves_a_tail_from_the_start() -> None:
    run = SimulatedRun(Setup(num_pages=4, page_size=4)).run([request(0, 7, 1)])
    assert [classes(entry) for entry in run.recorder.sink.entries] == [{"token": 7, "tail": 1}]


def test_pow2_estimate_on_a_buddy_allocator() -> None:
    # prompt 40 + 32, the power of two above 25 outputs: 72 asked; 5 pages become 8: 128 granted
    setup = Setup("contiguous", {"fit": "buddy"}, num_pages=16, page_size=16, expected="pow2")
    run = SimulatedRun(setup).run([request(0, 40, 25, max_tokens=100)])
    entry = next(entry for entry in run.recorder.sink.entries if entry.token == 50)
    assert classes(entry) == {"token": 50, "reserved": 14, "over_reserved": 8, "size_class": 56}
    assert entry.free == 128


def test_a_hundred_reservations_of_which_a_quarter_is_used() -> None:
    bytes_per_token = 512 * KIB
    setup = Setup(
        "contiguous",
        {"fit": "first_fit"},
        num_pages=100 * 2048 // 16,
        page_size=16,
        expected="max",
        token_budget=100 * 500,
    )
    requests = [request(i, 500, 13, max_tokens=2048 - 500 + 1) for i in range(100)]
    last = SimulatedRun(setup).run(requests).recorder.sink.entries[-1]
    each = {name: slots * bytes_per_token // 100 for name, slots in classes(last).items()}
    assert sum(each.values()) == GIB
    assert each["token"] == 256 * MIB
    assert last.over_reserved * bytes_per_token == 75 * GIB


def test_ten_requests_on_one_prompt_of_200_tokens() -> None:
    page_bytes = 16 * 512 * KIB
    allocator = PagedCopyOnWrite(PagePool(64, 16))
    ledger = Ledger(64, 16)

    def saved_mib() -> int:
        entry = ledger.entry(allocator.usage(), None)
        return (entry.logical_pages - entry.mapped_pages) * page_bytes // MIB

    allocator.allocate(0, range(200), 300, 0)
    ledger.admit(Extent(0, 200, 299, 200))
    ledger.map(TableUpdate(0, 0, allocator.block_table(0)))
    for child in range(1, 10):
        allocator.fork(0, child, 300, 0)
        ledger.admit(Extent(child, 200, 299, 200))
        ledger.map(TableUpdate(child, 0, allocator.block_table(child)))
    entry = ledger.entry(allocator.usage(), None)
    assert (entry.mapped_pages, entry.logical_pages) == (13, 130)
    assert (entry.token, entry.reserved, entry.logical_tokens) == (200, 8, 2000)
    assert saved_mib() == 936
    for seq_id in range(10):
        grown = allocator.append(seq_id)
        assert grown is not None and len(grown.copies) == (seq_id < 9)  # the last owns it alone
        ledger.map(TableUpdate(seq_id, 12, allocator.block_table(seq_id)[12:]))
    ledger.advance([(seq_id, 1) for seq_id in range(10)])
    assert saved_mib() == 864
    entry = ledger.entry(allocator.usage(), None)
    assert (entry.token, entry.reserved) == (12 * 16 + 10 * 9, 10 * 7)


def test_dead_window_counts_what_no_sharer_reads_again() -> None:
    ledger = Ledger(8, 4, windows=(5,))
    allocator = PagedCopyOnWrite(PagePool(8, 4))
    allocator.allocate(0, range(8), 20, 0)
    ledger.admit(Extent(0, 8, 20, 8))
    ledger.map(TableUpdate(0, 0, allocator.block_table(0)))
    # the next query, at position 8, reads positions 4 to 8
    assert ledger.entry(allocator.usage(), None).dead_window == 4
    allocator.fork(0, 1, 20, 0)
    ledger.admit(Extent(1, 8, 20, 8))
    ledger.map(TableUpdate(1, 0, allocator.block_table(1)))
    allocator.append(0, 4)
    ledger.map(TableUpdate(0, 0, allocator.block_table(0)))
    ledger.advance([(0, 4)])
    # sequence 0 is past positions 0 to 7, but its fork still reads 4 to 7
    assert ledger.entry(allocator.usage(), None).dead_window == 4
    allocator.free(1)
    ledger.unmap(1)
    assert ledger.entry(allocator.usage(), None).dead_window == 8
    allocator.release(0, 8)
    ledger.map(TableUpdate(0, 0, allocator.block_table(0)))
    entry = ledger.entry(allocator.usage(), None)
    assert (entry.dead_window, entry.token, entry.mapped_pages) == (0, 4, 1)


def test_growth_beyond_an_unknown_end_is_never_reserved() -> None:
    ledger = Ledger(2, 4)
    allocator = PagedCopyOnWrite(PagePool(2, 4))
    allocator.allocate(0, range(2), 20, 0)
    ledger.admit(Extent(0, 0, None, 2))
    ledger.map(TableUpdate(0, 0, allocator.block_table(0)))
    ledger.advance([(0, 3)])
    assert classes(ledger.entry(allocator.usage(), None)) == {"token": 3, "tail": 1}

"""The memory ledger: every slot of the pool in exactly one class, at every step.

It is driven by what the scheduler tells the device (tables mapped, sequences freed, tokens
computed). From the allocator it takes the number of unmapped pages that its reuse index can still
return: a claim, bounded by the pages that hold computed KV. A sequence that advances within its
pages costs O(1), a change of tables O(pages changed); neither depends on the size of the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from allocators.base import NULL_PAGE, Usage
from harness.engine.memory_events import Extent, Refusal
from harness.engine.plan import TableUpdate


class LedgerEntry(NamedTuple):
    """Slots by class after a step; `token` to `free` add up to the pool's slots.

    dead_window: the part of `token` that a sliding window has left behind for good.
    misaligned: the part of `refused` that a strategy could not use which places contiguously.
    logical_tokens counts a shared computed slot once for each sequence that maps it;
    mapped_pages and logical_pages count a shared page once and once for each sequence.
    """

    token: int
    reserved: int
    over_reserved: int
    size_class: int
    tail: int
    cached: int
    withheld: int
    stranded: int
    refused: int
    free: int
    dead_window: int
    misaligned: int
    logical_tokens: int
    mapped_pages: int
    logical_pages: int


CLASSES = LedgerEntry._fields[:10]
"""The classes that add up to the pool."""


FEWEST_TABLES = 10
"""Block tables of two or more pages that must be seen before a strategy is said to place
contiguously: a paged one that has just begun hands out consecutive pages, too."""


def settled(entry: LedgerEntry) -> LedgerEntry:
    """An entry of a run whose strategy turned out not to place contiguously: it neither strands
    memory nor fails to align it, it refuses by its admission policy."""
    return entry._replace(stranded=0, refused=entry.refused + entry.stranded, misaligned=0)


class _Row:
    """A live sequence: its table and how far it is computed, will compute, and asked for."""

    __slots__ = ("asked", "computed", "final", "pages", "released", "reserved_until")

    def __init__(self, computed: int, final: int, asked: int) -> None:
        self.computed = computed
        self.final = final
        self.asked = asked
        self.pages: list[int] = []
        self.released = 0
        self.reserved_until = 0


class _Bounds(NamedTuple):
    """Where the classes of a run of mapped slots end; the rest, up to `end`, is round-up."""

    computed: int
    final: int
    asked: int
    end: int
    is_size_class: bool

    def counts(self, begin: int) -> tuple[int, int, int, int, int]:
        """token, reserved, over_reserved, size_class, tail from `begin` on."""
        rest = self.end - self.asked
        return (
            self.computed - begin,
            self.final - self.computed,
            self.asked - self.final,
            rest if self.is_size_class else 0,
            0 if self.is_size_class else rest,
        )


class Ledger:
    """Classifies the slots of one pool.

    windows: one for each group of layers, which has tables of its own over the shared pool: the
        tokens that a sliding window spans, None where everything is read.
    """

    def __init__(
        self, num_pages: int, page_size: int, windows: tuple[int | None, ...] = (None,)
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._windows = windows
        self._num_groups = len(windows)
        self._slides = any(window is not None for window in windows)
        self._rows: dict[int, _Row] = {}
        self._owners: dict[int, int] = {}  # page -> one row that maps it
        self._sharers: dict[int, dict[int, int]] = {}  # page -> {row: table index}, if several
        self._unsettled: set[int] = set()  # shared pages that some sharer has not computed whole
        self._settled_excess = 0  # slots that settled shared pages were counted too often
        self._sums = [0, 0, 0, 0, 0]
        self._logical_tokens = 0
        self._logical_pages = 0
        self._is_mapped = bytearray(num_pages)
        self._is_scattered = False
        self._num_tables = 0

    @property
    def places_contiguously(self) -> bool:
        """So far all block tables of two or more pages were of consecutive ones."""
        return not self._is_scattered and self._num_tables >= FEWEST_TABLES

    def admit(self, extent: Extent) -> None:
        """A sequence becomes live. An unknown final length is taken to be what was asked for."""
        final = extent.asked_len if extent.final_len is None else extent.final_len
        for row_id in self._row_ids(extent.seq_id):
            self._rows[row_id] = _Row(extent.computed_len, final, extent.asked_len)
            self._logical_tokens += extent.computed_len

    def map(self, update: TableUpdate) -> None:
        """A live sequence's table, from entry `update.first` on, is now `update.page_ids`."""
        row_id = update.seq_id * self._num_groups + update.group
        row = self._rows[row_id]
        first = update.first
        as_many = first + len(update.page_ids) == len(row.pages) and row.released <= first
        if as_many and NULL_PAGE not in update.page_ids:  # a beam step: no slot changes its class
            self._map_pages(row_id, row, update)
            return
        self._count(row, -1)
        self._map_pages(row_id, row, update)
        self._count(row, 1)

    def unmap(self, seq_id: int) -> None:
        """The sequence is no longer live."""
        for row_id in self._row_ids(seq_id):
            row = self._rows[row_id]
            self._count(row, -1)
            self._cut_table(row_id, row, 0)
            self._logical_tokens -= row.computed
            del self._rows[row_id]

    def advance(self, computed: Iterable[tuple[int, int]]) -> None:
        """Sequences have computed so many tokens more: (seq_id, number) pairs."""
        rows, sums = self._rows, self._sums
        if self._num_groups > 1:
            computed = [(row_id, n) for seq_id, n in computed for row_id in self._row_ids(seq_id)]
        for row_id, num_tokens in computed:
            row = rows[row_id]
            self._logical_tokens += num_tokens
            reached = row.computed + num_tokens
            if reached <= row.reserved_until:
                row.computed = reached
                sums[0] += num_tokens
                sums[1] -= num_tokens
            else:
                self._count(row, -1)
                row.computed = reached
                self._count(row, 1)

    def entry(self, usage: Usage, refusal: Refusal | None) -> LedgerEntry:
        """The classes now. `refusal` of the queue's head says which class free slots are in."""
        sums = self._sums.copy()
        self._settle()
        sums[0] -= self._settled_excess
        for page in self._unsettled:
            self._uncount_duplicates(page, sums)
        cached = usage.cached * self.page_size
        unmapped = (self.num_pages - len(self._owners)) * self.page_size - cached
        kind = self._kind_of_unmapped(refusal)
        token, reserved, over_reserved, size_class, tail = sums
        return LedgerEntry(
            token=token,
            reserved=reserved,
            over_reserved=over_reserved,
            size_class=size_class,
            tail=tail,
            cached=cached,
            withheld=unmapped if kind == "withheld" else 0,
            stranded=unmapped if kind == "stranded" else 0,
            refused=unmapped if kind in ("refused", "misaligned") else 0,
            free=unmapped if kind == "free" else 0,
            dead_window=self._dead_slots() if self._slides else 0,
            misaligned=unmapped if kind == "misaligned" else 0,
            logical_tokens=self._logical_tokens,
            mapped_pages=len(self._owners),
            logical_pages=self._logical_pages,
        )

    def page_counts(self) -> dict[int, tuple[int, tuple[int, int, int, int, int]]]:
        """For each mapped page one owner and its slots by class: token to tail. O(pages)."""
        result = {}
        for row_id, row in self._rows.items():
            for index, page in enumerate(row.pages):
                if self._owners.get(page) == row_id:
                    bounds = self._page_bounds(page, {row_id: index})
                    result[page] = (row_id // self._num_groups, bounds.counts(0))
        return result

    def _kind_of_unmapped(self, refusal: Refusal | None) -> str:
        """The class of slots that are neither mapped nor cached. What an unplaced head of the queue
        left is taken for stranded or misaligned until a table is seen that is not contiguous."""
        if refusal is None or refusal.kind == "full":
            return "free"
        if refusal.kind == "withheld":
            return "withheld"
        if self._is_scattered:
            return "refused"
        num_runs = self._is_mapped.count(bytes(max(1, refusal.pages_each)))
        return "misaligned" if num_runs >= refusal.num_tables else "stranded"

    def _row_ids(self, seq_id: int) -> range:
        """The rows of a sequence: one for each group of layers."""
        first = seq_id * self._num_groups
        return range(first, first + self._num_groups)

    def _count(self, row: _Row, sign: int) -> None:
        end = len(row.pages) * self.page_size
        begin = row.released * self.page_size
        row.reserved_until = min(row.final, end)
        for index, slots in enumerate(self._bounds(row, begin, end).counts(begin)):
            self._sums[index] += sign * slots

    def _bounds(self, row: _Row, begin: int, end: int) -> _Bounds:
        """Class boundaries of the row's slots at positions begin .. end - 1."""
        computed = row.computed
        final = max(computed, row.final)
        asked = max(final, row.asked)
        is_size_class = len(row.pages) > -(-asked // self.page_size)
        return _Bounds(
            min(max(computed, begin), end),
            min(max(final, begin), end),
            min(max(asked, begin), end),
            end,
            is_size_class,
        )

    def _map_pages(self, row_id: int, row: _Row, update: TableUpdate) -> None:
        self._cut_table(row_id, row, update.first)
        for page in update.page_ids:
            self._map_page(row_id, row, page)

    def _map_page(self, row_id: int, row: _Row, page: int) -> None:
        index = len(row.pages)
        if index and page != row.pages[-1] + 1 and NULL_PAGE not in (page, row.pages[-1]):
            self._is_scattered = True
        self._num_tables += index == 1
        row.pages.append(page)
        if page == NULL_PAGE:
            row.released = index + 1
            return
        self._logical_pages += 1
        owner = self._owners.setdefault(page, row_id)
        if owner == row_id:
            self._is_mapped[page] = 1
            return
        self._unsettle(page)
        sharers = self._sharers.get(page)
        if sharers is None:
            owner_index = self._rows[owner].pages.index(page)
            sharers = self._sharers[page] = {owner: owner_index}
        sharers[row_id] = index
        self._unsettled.add(page)

    def _cut_table(self, row_id: int, row: _Row, first: int) -> None:
        for page in row.pages[first:]:
            if page == NULL_PAGE:
                continue
            self._logical_pages -= 1
            sharers = self._sharers.get(page)
            if sharers is None:
                del self._owners[page]
                self._is_mapped[page] = 0
                continue
            self._unsettle(page)
            del sharers[row_id]
            self._owners[page] = next(iter(sharers))
            if len(sharers) == 1:
                del self._sharers[page]
                self._unsettled.discard(page)
        del row.pages[first:]
        row.released = min(row.released, first)

    def _unsettle(self, page: int) -> None:
        sharers = self._sharers.get(page)
        if sharers is not None and page not in self._unsettled:
            self._settled_excess -= (len(sharers) - 1) * self.page_size
            self._unsettled.add(page)

    def _settle(self) -> None:
        """Shared pages that all sharers have computed whole need no further look."""
        size = self.page_size
        done = []
        for page in self._unsettled:
            sharers = self._sharers[page]
            if all(self._rows[s].computed >= (i + 1) * size for s, i in sharers.items()):
                done.append(page)
                self._settled_excess += (len(sharers) - 1) * size
        self._unsettled.difference_update(done)

    def _uncount_duplicates(self, page: int, sums: list[int]) -> None:
        """A page's slots were counted for every sharer: count them once, in the first class."""
        size = self.page_size
        sharers = self._sharers[page]
        for row_id, index in sharers.items():
            begin = index * size
            counted = self._bounds(self._rows[row_id], begin, begin + size).counts(begin)
            for k, slots in enumerate(counted):
                sums[k] -= slots
        for k, slots in enumerate(self._page_bounds(page, sharers).counts(0)):
            sums[k] += slots

    def _page_bounds(self, page: int, sharers: dict[int, int]) -> _Bounds:
        """Class boundaries within a page, 0 to page_size, over all who map it."""
        size = self.page_size
        computed = final = asked = 0
        is_size_class = True
        for row_id, index in self._sharers.get(page, sharers).items():
            begin = index * size
            bounds = self._bounds(self._rows[row_id], begin, begin + size)
            computed = max(computed, bounds.computed - begin)
            final = max(final, bounds.final - begin)
            asked = max(asked, bounds.asked - begin)
            is_size_class &= bounds.is_size_class
        return _Bounds(computed, final, asked, size, is_size_class)

    def _dead_slots(self) -> int:
        """Mapped slots that no later query of any sharer will read."""
        size, windows, num_groups = self.page_size, self._windows, self._num_groups
        dead = 0
        for row_id, row in self._rows.items():
            window = windows[row_id % num_groups]
            if window is not None:
                mapped = len(row.pages) * size
                dead += max(0, min(row.computed - window + 1, mapped) - row.released * size)
        for sharers in self._sharers.values():  # all of one group: a page belongs to one
            window = windows[next(iter(sharers)) % num_groups]
            if window is not None:
                in_page = [
                    min(max(self._rows[s].computed - window + 1 - i * size, 0), size)
                    for s, i in sharers.items()
                ]
                dead -= sum(in_page) - min(in_page)
        return dead

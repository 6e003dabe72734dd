"""Contiguous reservations: what serving systems did before paging (Orca and its variants;
Kwon et al., SOSP 2023, section 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from allocators.base import UNCHANGED, Allocation, KVCacheAllocator, SequenceState, Usage
from allocators.extents import BuddyPlacer, FittedPlacer, RunPlacer
from allocators.page_pool import PagePool


class Contiguous(KVCacheAllocator):
    """Each sequence has one run of consecutive pages, reserved at admission.

    Reserved are the tokens known, or `expected_len` (at most `max_len`) where that is more.
    A sequence that outgrows its run is extended in place where the pages behind it are free
    (`buddy`: where its right buddy is), and refused otherwise. `keep_free` is ignored:
    reservations are not meant to grow. Placement needs the whole pool to itself.

    fit: `buddy` rounds the run up to a power of two pages; `first_fit` takes the lowest free
        extent that is long enough, `best_fit` the tightest.
    """

    name: ClassVar[str] = "contiguous"
    labelled_options: ClassVar[tuple[str, ...]] = ("fit",)
    grows_on_demand: ClassVar[bool] = False
    refusals_stand: ClassVar[bool] = True

    def __init__(
        self, pool: PagePool, fit: Literal["buddy", "first_fit", "best_fit"] = "buddy"
    ) -> None:
        super().__init__(pool)
        if pool.num_free != pool.num_pages:
            raise ValueError(
                f"contiguous allocation needs the whole pool: {pool.num_free} of "
                f"{pool.num_pages} pages are free"
            )
        self._placer: RunPlacer
        if fit == "buddy":
            self._placer = BuddyPlacer(pool.num_pages)
        elif fit in ("first_fit", "best_fit"):
            self._placer = FittedPlacer(pool.num_pages, tightest=fit == "best_fit")
        else:
            raise ValueError(f"fit={fit!r} is none of buddy, first_fit, best_fit")

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        self.check_new(seq_id, token_ids)
        length = len(token_ids)
        run = self._placer.take(self.pages_for(max(length, min(expected_len, max_len))))
        if run is None:
            return None
        start, granted = run
        pages = list(range(start, start + granted))
        self.sequences[seq_id] = SequenceState(pages, length, max_len, expected_len)
        return Allocation()

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        sequence = self.sequences[seq_id]
        if num_tokens < 1:
            raise ValueError(f"cannot append {num_tokens} tokens to sequence {seq_id}")
        new_len = sequence.length + num_tokens
        table = sequence.page_ids
        granted = len(table)
        if new_len <= granted * self.page_size:
            sequence.length = new_len
            return UNCHANGED
        grown = self._placer.grow(table[0], granted, self.pages_for(new_len))
        if grown is None:
            return None
        table += range(table[0] + granted, table[0] + grown)
        sequence.length = new_len
        return Allocation(0, (), granted)

    def free(self, seq_id: int) -> None:
        table = self.sequences[seq_id].page_ids
        del self.sequences[seq_id]
        self._placer.put_back(table[0], len(table))

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.sequences[seq_id].page_ids

    def usage(self) -> Usage:
        free = self._placer.num_free
        return Usage(self.pool.num_pages - free, 0, free)

    @property
    def max_sequence_pages(self) -> int:
        return self._placer.largest_run

    def check_integrity(self) -> None:
        super().check_integrity()
        runs = self._placer.free_runs()
        for seq_id, sequence in self.sequences.items():
            table = sequence.page_ids
            assert table == list(range(table[0], table[0] + len(table))), f"{seq_id}: {table}"
            assert sequence.length <= len(table) * self.page_size, f"sequence {seq_id} lacks room"
            runs.append((table[0], len(table)))
        pages = [page for start, length in runs for page in range(start, start + length)]
        assert sorted(pages) == list(range(self.pool.num_pages)), "runs overlap or miss pages"

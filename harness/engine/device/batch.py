"""Lowers a step plan to the flat arrays that kernels read."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from allocators.base import NULL_PAGE
from harness.engine.plan import Chunk, TableUpdate

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """A ragged batch of S sequences and T tokens, in plan order.

    input_ids, positions: (T,). slot_mapping: (G, T), for each of G groups of layers.
    query_start_loc: (S + 1,). seq_lens: (S,), start plus tokens of this step. block_table:
    (G, S, pages), just wide enough for `seq_lens`.
    sample_rows: indices into T of the tokens whose logits are wanted. max_query_len: longest
    chunk. rows: (S,), of each sequence its row of the block tables.
    """

    input_ids: Int64
    positions: Int64
    slot_mapping: Int64
    query_start_loc: Int32
    seq_lens: Int32
    block_table: Int32
    sample_rows: Int64
    max_query_len: int
    rows: Int64


class RowBatch(NamedTuple):
    """S sequences of one token each, in plan order, each in its row of the block tables.

    rows, input_ids, positions: (S,). slot_mapping: (G, S), for each of G groups of layers.
    """

    rows: Int64
    input_ids: Int64
    positions: Int64
    slot_mapping: Int64


class TableChange(NamedTuple):
    """Entries `first` up to `end` of a row of one group's block table are new."""

    group: int
    row: int
    first: int
    end: int


def empty_tables(max_seqs: int, max_len: int, page_size: int, num_groups: int) -> Int32:
    """Block tables, (groups, sequences, pages), of which no entry is set."""
    return np.full((num_groups, max_seqs, -(-max_len // page_size)), -1, dtype=np.int32)


class BatchBuilder:
    """Keeps each sequence's block tables, one a group of layers, in a row of its own and builds
    batches from plans. The lowest free row is given out first, so that rows in use lie close
    together.

    changes: of the tables, since whoever keeps a copy of them emptied it; rows that were given
    back are not among them. None where nobody does.
    """

    def __init__(self, max_seqs: int, max_len: int, page_size: int, num_groups: int = 1) -> None:
        self.page_size = page_size
        self.max_seqs = max_seqs
        self.table: Int32 = empty_tables(max_seqs, max_len, page_size, num_groups)
        self._row_of: dict[int, int] = {}
        self._free_rows = list(range(max_seqs))
        self.changes: list[TableChange] | None = None

    def free(self, seq_ids: Iterable[int]) -> None:
        """Give the rows of `seq_ids` back; ids that never had a table are ignored."""
        for seq_id in seq_ids:
            row = self._row_of.pop(seq_id, None)
            if row is not None:
                self.table[:, row] = -1
                heapq.heappush(self._free_rows, row)

    def update(self, updates: Iterable[TableUpdate]) -> None:
        """Write block-table entries; those past `max_len` are never read and are dropped."""
        width = self.table.shape[2]
        for seq_id, first, page_ids, group in updates:
            row = self._row_of.get(seq_id)
            if row is None:
                row = self._new_row(seq_id)
            end = min(first + len(page_ids), width)
            if end > first:
                entries = self.table[group, row, first:end]
                entries[:] = page_ids[: end - first]
                if page_ids[0] == NULL_PAGE:  # never read again, but a kernel may look it up
                    entries[entries == NULL_PAGE] = 0
                if self.changes is not None:
                    self.changes.append(TableChange(group, row, first, end))

    def highest_row(self, chunks: tuple[Chunk, ...]) -> int:
        """The highest row of the sequences in `chunks`."""
        row_of = self._row_of
        return max([row_of[chunk.seq_id] for chunk in chunks])

    def build_rows(self, chunks: tuple[Chunk, ...]) -> RowBatch:
        """The batch for `chunks` of one token each. Raises ValueError as `build` does."""
        row_of = self._row_of
        rows = np.array([row_of[chunk.seq_id] for chunk in chunks], dtype=np.int64)
        positions = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        ids = np.array([chunk.token_ids[0] for chunk in chunks], dtype=np.int64)
        page_index, offsets = np.divmod(positions, self.page_size)
        pages = self.table[:, rows, page_index].astype(np.int64)
        if pages.min() < 0:
            self._raise_unmapped(chunks, pages, np.arange(len(chunks) + 1), positions)
        return RowBatch(rows, ids, positions, pages * self.page_size + offsets)

    def build(self, chunks: tuple[Chunk, ...]) -> Batch:
        """The batch for `chunks`, of which there is at least one.

        Raises ValueError where a token to be computed has no page.
        """
        rows = np.array([self._row_of[chunk.seq_id] for chunk in chunks], dtype=np.int64)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        lens = np.array([len(chunk.token_ids) for chunk in chunks], dtype=np.int64)
        bounds = np.zeros(len(chunks) + 1, dtype=np.int64)
        np.cumsum(lens, out=bounds[1:])
        total = int(bounds[-1])
        token_ids = chain.from_iterable(chunk.token_ids for chunk in chunks)
        positions = np.arange(total) + np.repeat(starts - bounds[:-1], lens)
        token_rows = np.repeat(rows, lens)
        page_index, offsets = np.divmod(positions, self.page_size)
        pages = self.table[:, token_rows, page_index].astype(np.int64)
        if pages.min() < 0:
            self._raise_unmapped(chunks, pages, bounds, positions)
        seq_lens = starts + lens
        width = -(-int(seq_lens.max()) // self.page_size)
        sample_rows = [
            row
            for chunk, end in zip(chunks, bounds[1:].tolist(), strict=True)
            if chunk.draws or chunk.num_candidates
            for row in range(end - 1 - chunk.num_drafts, end)
        ]
        return Batch(
            input_ids=np.fromiter(token_ids, dtype=np.int64, count=total),
            positions=positions,
            slot_mapping=pages * self.page_size + offsets,
            query_start_loc=bounds.astype(np.int32),
            seq_lens=seq_lens.astype(np.int32),
            block_table=self.table[:, rows, :width],
            sample_rows=np.array(sample_rows, dtype=np.int64),
            max_query_len=int(lens.max()),
            rows=rows,
        )

    def take_changes(self) -> tuple[list[TableChange], Int32]:
        """`changes` since the last time, and the entries that they name, one after the other."""
        changes, self.changes = self.changes or [], []
        entries = [self.table[group, row, first:end] for group, row, first, end in changes]
        return changes, np.concatenate(entries) if entries else np.zeros(0, dtype=np.int32)

    def _new_row(self, seq_id: int) -> int:
        if not self._free_rows:
            raise ValueError(
                f"sequence {seq_id} needs a block-table row, but all {self.max_seqs} are taken: "
                "raise engine.max_num_seqs"
            )
        row = heapq.heappop(self._free_rows)
        self._row_of[seq_id] = row
        return row

    @staticmethod
    def _raise_unmapped(
        chunks: tuple[Chunk, ...], pages: Int64, bounds: Int64, positions: Int64
    ) -> None:
        token = int(np.argmin(pages.min(axis=0)))
        seq_id = chunks[int(np.searchsorted(bounds, token, side="right")) - 1].seq_id
        raise ValueError(
            f"sequence {seq_id} has no page for position {positions[token]}: the allocator's "
            "block table is shorter than the tokens it was asked to hold"
        )

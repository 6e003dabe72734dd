"""A lowered step as one array of numbers, for ranks that hold the same pages and no plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from allocators.base import PageCopy
from harness.engine.device.batch import Batch, Int32, TableChange, empty_tables


class StepMessage(NamedTuple):
    """batch: None where only pages move. entries: of each of `table_changes`, one after the other,
    the new page ids. `batch.block_table` does not travel: every rank keeps the tables."""

    batch: Batch | None
    table_changes: Sequence[TableChange]
    entries: Int32
    saves: Sequence[PageCopy] = ()
    copies: Sequence[PageCopy] = ()
    restores: Sequence[PageCopy] = ()


_NUM_COUNTS = 9


def encode(message: StepMessage) -> Int32:
    """All of `message` in int32, which halves what is sent. OverflowError where the pool has more
    slots than that can name."""
    batch = message.batch
    counts = [len(message.table_changes), len(message.entries)]
    counts += [len(pages) for pages in (message.saves, message.copies, message.restores)]
    parts: list[npt.NDArray[Any]] = [_flat(message.table_changes), message.entries]
    parts += [_flat(pages) for pages in (message.saves, message.copies, message.restores)]
    if batch is None:
        counts += [0, 0, 0, 0]
    else:
        num_groups, num_tokens = batch.slot_mapping.shape
        if (last := int(batch.slot_mapping.max(initial=0))) > np.iinfo(np.int32).max:
            raise OverflowError(f"slot {last} does not fit into 32 bits: use a smaller pool")
        counts += [len(batch.rows), num_tokens, len(batch.sample_rows), num_groups]
        parts += [batch.rows, batch.seq_lens, batch.query_start_loc, batch.input_ids]
        parts += [batch.sample_rows, batch.slot_mapping.ravel()]
    return np.concatenate([np.array(counts), *parts]).astype(np.int32)


class StepReader:
    """The other end of `encode`: keeps the block tables, as a `BatchBuilder` of the same arguments
    does at the sender's."""

    def __init__(self, max_seqs: int, max_len: int, page_size: int, num_groups: int = 1) -> None:
        self._page_size = page_size
        self._table = empty_tables(max_seqs, max_len, page_size, num_groups)

    def decode(self, numbers: Int32) -> StepMessage:
        """The message, once the tables have taken in its changes."""
        counts = numbers[:_NUM_COUNTS].tolist()
        rest = _Reader(numbers[_NUM_COUNTS:])
        changes = [TableChange(*each) for each in rest.take(counts[0], 4).tolist()]
        entries = rest.take(counts[1])
        saves, copies, restores = (
            [PageCopy(*pair) for pair in rest.take(count, 2).tolist()] for count in counts[2:5]
        )
        self._apply(changes, entries)
        batch = self._batch(rest, *counts[5:]) if counts[5] else None
        return StepMessage(batch, changes, entries, saves, copies, restores)

    def _apply(self, changes: Sequence[TableChange], entries: Int32) -> None:
        begin = 0
        for group, row, first, end in changes:
            self._table[group, row, first:end] = entries[begin : begin + end - first]
            begin += end - first

    def _batch(
        self, rest: _Reader, num_seqs: int, num_tokens: int, num_samples: int, num_groups: int
    ) -> Batch:
        rows, seq_lens, bounds = (rest.take(count) for count in (num_seqs, num_seqs, num_seqs + 1))
        input_ids, sample_rows = rest.take(num_tokens), rest.take(num_samples)
        slot_mapping = rest.take(num_groups, num_tokens)
        lens = np.diff(bounds)
        starts = seq_lens - lens
        return Batch(
            input_ids=input_ids.astype(np.int64),
            positions=np.arange(num_tokens) + np.repeat(starts - bounds[:-1], lens),
            slot_mapping=slot_mapping.astype(np.int64),
            query_start_loc=bounds,
            seq_lens=seq_lens,
            block_table=self._table[:, rows, : -(-int(seq_lens.max()) // self._page_size)],
            sample_rows=sample_rows.astype(np.int64),
            max_query_len=int(lens.max()),
            rows=rows.astype(np.int64),
        )


class _Reader:
    def __init__(self, numbers: Int32) -> None:
        self._left = numbers

    def take(self, *shape: int) -> Int32:
        """The next numbers, as an array of this shape."""
        count = math.prod(shape)
        taken, self._left = self._left[:count], self._left[count:]
        return taken.reshape(shape)


def _flat(tuples: Sequence[tuple[int, ...]]) -> Int32:
    return np.array(tuples, dtype=np.int32).ravel()

"""A device that keeps what each slot holds, and checks all that a forward may read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from allocators.base import PageCopy
from harness.engine.executor import Executor
from harness.engine.plan import Chunk, StepOutcome, StepPlan

Page = dict[int, int]
"""What the slots of a page hold: a hash of the token there and of all before it."""


class WrongRead(NamedTuple):
    """A slot that does not hold what a chunk reads there."""

    step: int
    seq_id: int
    layer_group: int
    position: int
    page: int


class KVTape:
    """Carries plans out on hashes in place of keys and values, then asks `inner` for tokens.

    A token's hash covers all tokens before it, as its keys and values depend on them all.
    windows: of the groups of layers. known_ids: tokens of each running sequence; set before use.
    """

    def __init__(self, inner: Executor, page_size: int, windows: Sequence[int | None]) -> None:
        self._inner = inner
        self._page_size = page_size
        self._windows = windows
        self._pages: dict[int, Page] = {}
        self._host: dict[int, Page] = {}
        self._tables: dict[int, list[list[int]]] = {}
        self._num_steps = 0
        self.known_ids: Callable[[], Mapping[int, Sequence[int]]] = dict
        self.wrong: list[WrongRead] = []

    def execute(self, plan: StepPlan) -> StepOutcome:
        self._num_steps += 1
        for seq_id in plan.freed_seq_ids:
            self._tables.pop(seq_id, None)
        for seq_id, first, page_ids, group in plan.table_updates:
            tables = self._tables.setdefault(seq_id, [[] for _ in self._windows])
            tables[group][first:] = page_ids
        self._move(plan.saves, self._pages, self._host)
        self._move(plan.copies, self._pages, self._pages)
        self._move(plan.restores, self._host, self._pages)
        known = self.known_ids()
        hashes = [(chunk, _hashes(known[chunk.seq_id], chunk)) for chunk in plan.chunks]
        for chunk, held in hashes:
            self._write(chunk, held)
        for chunk, held in hashes:
            self._read(chunk, held)
        return self._inner.execute(plan)

    def close(self) -> None:
        self._inner.close()

    @staticmethod
    def _move(copies: Sequence[PageCopy], source: dict[int, Page], to: dict[int, Page]) -> None:
        to.update({copy.destination: dict(source.get(copy.source, {})) for copy in copies})

    def _write(self, chunk: Chunk, hashes: Sequence[int]) -> None:
        for table in self._tables[chunk.seq_id]:
            for position in range(chunk.start, len(hashes)):
                index, offset = divmod(position, self._page_size)
                self._pages.setdefault(table[index], {})[offset] = hashes[position]

    def _read(self, chunk: Chunk, hashes: Sequence[int]) -> None:
        for group, (table, window) in enumerate(
            zip(self._tables[chunk.seq_id], self._windows, strict=True)
        ):
            first = 0 if window is None else max(0, chunk.start - window + 1)
            for position in range(first, len(hashes)):
                index, offset = divmod(position, self._page_size)
                if self._pages.get(table[index], {}).get(offset) != hashes[position]:
                    self.wrong.append(
                        WrongRead(self._num_steps, chunk.seq_id, group, position, table[index])
                    )
                    break


def _hashes(known: Sequence[int], chunk: Chunk) -> list[int]:
    """Of each position up to the chunk's end."""
    hashes, last = [], 0
    for token in [*known[: chunk.start], *chunk.token_ids]:
        last = hash((last, token))
        hashes.append(last)
    return hashes

"""The pool over time, page by page, for pictures of fragmentation."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from harness.measure.ledger import Ledger

_State = tuple[int, tuple[int, int, int, int, int]]


class PageInterval(NamedTuple):
    """A page kept one state from `from_s` to `to_s`: its owner and its slots by class.

    Within a page the classes follow one another in this order. Unmapped pages have no
    interval; `seq_id` is one of the sequences that map the page.
    """

    page: int
    seq_id: int
    token: int
    reserved: int
    over_reserved: int
    size_class: int
    tail: int
    from_s: float
    to_s: float


class MemoryMap:
    """Samples the ledger at most every `period_s` and keeps what changed."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._next_s = 0.0
        self._open: dict[int, tuple[_State, float]] = {}
        self._closed: list[PageInterval] = []
        self._last_s = 0.0

    def sample(self, ledger: Ledger, start_s: float, end_s: float) -> None:
        """Look at every mapped page, if the period has passed; memory is as it was during a step
        from `start_s` to `end_s`."""
        self._last_s = end_s
        if start_s < self._next_s:
            return
        self._next_s = start_s + self._period_s
        states = ledger.page_counts()
        for page, (state, since_s) in list(self._open.items()):
            if states.get(page) != state:
                self._close(page, state, since_s, start_s)
                del self._open[page]
        for page, state in states.items():
            self._open.setdefault(page, (state, start_s))

    def frame(self) -> pd.DataFrame:
        """All intervals so far; open ones end now."""
        for page, (state, since_s) in self._open.items():
            self._close(page, state, since_s, self._last_s)
        self._open.clear()
        return pd.DataFrame(self._closed, columns=list(PageInterval._fields))

    def _close(self, page: int, state: _State, from_s: float, to_s: float) -> None:
        seq_id, counts = state
        self._closed.append(PageInterval(page, seq_id, *counts, from_s, to_s))

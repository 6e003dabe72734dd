"""What a run under way tells of itself: a few numbers in memory that its process shares.

A thread beside the run looks at it, PERIOD_S apart; the run itself does nothing for it, and nobody
waits for anybody. So the figures are samples, good for a display and for no table.
"""

from __future__ import annotations

import multiprocessing as mp
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from harness.engine.request import Workload

PERIOD_S = 0.5

_NUM_CELLS = 5


class LiveFigures(NamedTuple):
    """share_done: of the run's requests, over all repetitions. output_tokens_per_s: of wall time,
    since the repetition under way began. unused_share: of the pool's slots that held no token, the
    mean of samples. elapsed_s: wall time since the run began."""

    share_done: float
    output_tokens_per_s: float
    unused_share: float
    elapsed_s: float


class Watched(Protocol):
    """What of a repetition under way is looked at, from another thread."""

    def num_ended(self) -> int:
        """Requests that are answered or refused."""
        ...

    def num_output_tokens(self) -> int: ...

    def used_share(self) -> float:
        """Of the pool's slots that hold a token, now."""
        ...


class LiveBoard:
    """The shared numbers of one worker; the child writes, the parent reads. A reader may find the
    numbers of two samples mixed, which a display can bear."""

    def __init__(self) -> None:
        self._cells: Any = mp.get_context("spawn").RawArray("d", _NUM_CELLS)

    def clear(self) -> None:
        """A run begins, of which nothing is known yet."""
        self._cells[:] = [0.0] * _NUM_CELLS

    def write(self, figures: LiveFigures) -> None:
        """Replace what there was."""
        self._cells[:] = [1.0, *figures]

    def read(self) -> LiveFigures | None:
        """What was written last; None before the first sample of a run."""
        is_there, *values = self._cells
        return LiveFigures(*values) if is_there else None


class LiveRun:
    """One run with its repetitions, as `board` shows it."""

    def __init__(self, board: LiveBoard, num_repetitions: int) -> None:
        self._board = board
        self._num_repetitions = num_repetitions
        self._num_done = 0
        self._begin_s = time.perf_counter()
        self._used_shares = 0.0
        self._num_samples = 0
        self.cpu_s = 0.0
        """Processor time that looking took so far."""
        board.clear()

    @contextmanager
    def repetition(self, watched: Watched, workload: Workload) -> Iterator[None]:
        """Within it, `watched` is looked at until it is over."""
        over = threading.Event()
        num_requests = len(workload.requests)
        thread = threading.Thread(
            target=self._watch, args=(watched, num_requests, over), daemon=True, name="live figures"
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._num_done += 1

    def _watch(self, watched: Watched, num_requests: int, over: threading.Event) -> None:
        begin_s = time.perf_counter()
        while not over.wait(PERIOD_S):
            cpu_s = time.thread_time()
            now_s = time.perf_counter()
            try:
                used, num_tokens = watched.used_share(), watched.num_output_tokens()
            except Exception:  # the run goes on meanwhile: it was caught half changed
                continue
            self._used_shares += used
            self._num_samples += 1
            done = self._num_done + watched.num_ended() / max(1, num_requests)
            self._board.write(
                LiveFigures(
                    done / self._num_repetitions,
                    num_tokens / (now_s - begin_s),
                    1 - self._used_shares / self._num_samples,
                    now_s - self._begin_s,
                )
            )
            self.cpu_s += time.thread_time() - cpu_s

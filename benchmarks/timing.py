"""How long a call takes on the device: one interface for GPUs and for CPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch

Call = Callable[[], object]

_QUEUEING_CYCLES_A_CALL = 400_000
"""Cycles (about 0.2 ms) that the GPU waits a call, so that the host is done launching first."""


class Timing(NamedTuple):
    """Of one call, over rounds. method: `graph` (replays of a CUDA graph that holds all calls),
    `events` (launched one by one behind a wait), `wall` (a host clock)."""

    median_us: float
    low_us: float
    high_us: float
    rounds: int
    method: str


class Timer(Protocol):
    """Times calls that do the same work on different inputs, in turn."""

    def time(self, calls: Sequence[Call], *, limit_s: float = 0.2, capture: bool = True) -> Timing:
        """Warm up, then as many rounds over all `calls` as fit into about `limit_s`.

        capture: whether a CUDA graph may hold the calls. Not those that send the device what is
        made anew on the host: a replay would read what lies there by then.
        """
        ...


def timer_for(device: torch.device) -> Timer:
    """Device events on a GPU, a host clock elsewhere."""
    return EventTimer() if device.type == "cuda" else WallTimer()


class WallTimer:
    """A host clock around calls that are done when they return."""

    def __init__(self, least_rounds: int = 3) -> None:
        self._least_rounds = least_rounds

    def time(self, calls: Sequence[Call], *, limit_s: float = 0.2, capture: bool = True) -> Timing:
        seconds: list[float] = []
        begin_s = time.perf_counter()
        calls[0]()
        while len(seconds) < self._least_rounds or (
            len(seconds) < 200 and time.perf_counter() - begin_s < limit_s
        ):
            start_s = time.perf_counter()
            calls[len(seconds) % len(calls)]()
            seconds.append(time.perf_counter() - start_s)
        return _timing([1e6 * s for s in seconds], "wall")


class EventTimer:
    """Device events around replays of a CUDA graph of all calls, which leaves the host out.

    What cannot be captured is launched while the device waits, so that it finds its work queued.
    """

    def __init__(self, least_rounds: int = 10, most_rounds: int = 200) -> None:
        self._least_rounds, self._most_rounds = least_rounds, most_rounds

    def time(self, calls: Sequence[Call], *, limit_s: float = 0.2, capture: bool = True) -> Timing:
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        replay = _captured(calls) if capture else None
        method = "events" if replay is None else "graph"
        run = replay or (lambda: _queued(calls))
        once_s = max(1e-6, self._round(run, len(calls), replay is None) * len(calls) / 1e6)
        rounds = int(min(self._most_rounds, max(self._least_rounds, limit_s / once_s)))
        if replay is None:
            times = [self._round(run, len(calls), True) for _ in range(rounds)]
        else:
            times = self._rounds(replay, len(calls), rounds)
        return _timing(times, method)

    def _round(self, run: Call, count: int, queued: bool) -> float:
        """Microseconds a call of one round."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if queued:
            torch.cuda._sleep(_QUEUEING_CYCLES_A_CALL * count)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / count

    def _rounds(self, replay: Call, count: int, rounds: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        replay()
        marks[0].record()
        for mark in marks[1:]:
            replay()
            mark.record()
        torch.cuda.synchronize()
        return [1e3 * a.elapsed_time(b) / count for a, b in pairwise(marks)]


def _queued(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _captured(calls: Sequence[Call]) -> Call | None:
    """A replay of all calls, or None where one of them cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    own = torch.cuda.current_stream()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(own)
        with torch.cuda.stream(side):
            calls[0]()
        own.wait_stream(side)
        with torch.cuda.graph(graph):
            _queued(calls)
    except (RuntimeError, ValueError):
        torch.cuda.set_stream(own)  # a capture that fails leaves its own stream behind
        torch.cuda.synchronize()
        return None
    return graph.replay


def _timing(microseconds: Sequence[float], method: str) -> Timing:
    low, median, high = np.percentile(np.asarray(microseconds), (10, 50, 90))
    return Timing(float(median), float(low), float(high), len(microseconds), method)

"""Time as the engine sees it."""

from __future__ import annotations

import time
from time import perf_counter  # whoever patches the module does not change the clock
from typing import Protocol


class Clock(Protocol):
    """Seconds since the run began."""

    def now_s(self) -> float: ...

    def advance(self, duration_s: float) -> None:
        """A step took `duration_s`."""

    def wait_until(self, time_s: float) -> None:
        """Nothing to do before `time_s`."""


class Stopwatch:
    """Real time between calls, whatever the engine's clock says. `resume` leaves out the time
    since `pause`, or since it was made."""

    def __init__(self) -> None:
        self._start = self._paused = perf_counter()

    def restart(self) -> float:
        """Seconds since the last time, or since it was made."""
        before, self._start = self._start, perf_counter()
        return self._start - before

    def pause(self) -> None:
        self._paused = perf_counter()

    def resume(self) -> None:
        self._start += perf_counter() - self._paused


class WallClock:
    """Real time; steps advance it by themselves."""

    def __init__(self) -> None:
        self._start = perf_counter()

    def now_s(self) -> float:
        return perf_counter() - self._start

    def advance(self, duration_s: float) -> None:
        return None

    def wait_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - self.now_s()))


class VirtualClock:
    """Simulated time; it moves only when told to."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def advance(self, duration_s: float) -> None:
        self._now_s += duration_s

    def wait_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)

"""How much of the processor others had while something was timed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil

DISTURBED_SHARE = 0.05
"""A timed repetition is disturbed where others had more than this share of the cores."""

_COUNTED_ELSEWHERE = ("idle", "iowait", "guest", "guest_nice")
"""Of a core's times: those in which nobody worked, and those that are part of others."""


class CpuReading(NamedTuple):
    """at_s: of `time.perf_counter`. busy_s: time that the cores which this process may use have
    worked so far, for anybody, and that a hypervisor took from them (steal). own_s: what this
    process and its children had of it.
    """

    at_s: float
    busy_s: float
    own_s: float
    num_cores: int


class Interference(NamedTuple):
    """others_share: of the cores, over the time between two readings; NaN where it is not known.
    own_cpu_s: processor time of this process and its children."""

    others_share: float
    own_cpu_s: float


def read_cpu() -> CpuReading | None:
    """As of now; None where the system does not tell. Takes some milliseconds: not for the inside
    of what is timed."""
    try:
        cores = psutil.cpu_times(percpu=True)
        chosen = _usable(len(cores))
        busy_s = sum(
            seconds
            for index in chosen
            for name, seconds in cores[index]._asdict().items()
            if name not in _COUNTED_ELSEWHERE
        )
        return CpuReading(time.perf_counter(), busy_s, _own_s(), len(chosen))
    except (psutil.Error, OSError, AttributeError, IndexError, RuntimeError):
        return None


def interference(before: CpuReading | None, after: CpuReading | None) -> Interference:
    """What happened between two readings. Counters of the system that show less than half of what
    this process had are not those of the cores it ran on, and count as unknown."""
    if before is None or after is None:
        return Interference(math.nan, math.nan)
    own_s = after.own_s - before.own_s
    busy_s = after.busy_s - before.busy_s
    available_s = (after.at_s - before.at_s) * after.num_cores
    if available_s <= 0 or busy_s < own_s / 2:
        return Interference(math.nan, own_s)
    return Interference(min(1.0, max(0.0, busy_s - own_s) / available_s), own_s)


def is_disturbed(row: Mapping[str, Any]) -> bool:
    """Whether others had too much of the cores during a stored repetition, as far as is known."""
    share = row.get("others_share")
    return share is not None and share > DISTURBED_SHARE


def _usable(num_cores: int) -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(num_cores))


def _own_s() -> float:
    times = os.times()
    ended_s = times.children_user + times.children_system
    return time.process_time() + ended_s + sum(map(_cpu_s, psutil.Process().children(True)))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended just now, and stands among the ended ones next time
        return 0.0
    return float(times.user + times.system)

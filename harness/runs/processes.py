"""This machine and its processes: whether one is still there, and how one is started and ended."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import psutil

_SAME_START_S = 2.0
"""A process whose start differs by more has only inherited the number."""

_GONE_WITHIN_S = 5.0
"""So long is waited for the end of a process that was killed."""


class ProcessName(NamedTuple):
    """A process among those of all machines. machine: of `this_machine`. started_s: see
    `_started_s`."""

    machine: str
    pid: int
    started_s: float

    @property
    def is_of_this_machine(self) -> bool:
        return self.machine == this_machine()

    def is_alive(self) -> bool:
        """Of a process of this machine; one that has ended and waits for its parent to notice is
        not."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(_started_s(process) - self.started_s) < _SAME_START_S
            return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def this_process() -> ProcessName:
    """The one that asks."""
    process = psutil.Process()
    return ProcessName(this_machine(), process.pid, _started_s(process))


def _started_s(process: psutil.Process) -> float:
    """When a process was started: on Linux in seconds since the machine was, which is what the
    kernel keeps, so that a clock that is set meanwhile ends nobody; elsewhere as Unix time."""
    booted_s = psutil.boot_time()  # first: older versions keep it for the next line
    return float(process.create_time() - (booted_s if sys.platform == "linux" else 0.0))


@functools.cache
def this_machine() -> str:
    """Within which process numbers mean the same: a host since it was started, and a container in
    it. Host names alone do not tell: clones and containers share them."""
    parts = [platform.node()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(path.stat().st_ino) if "ns" in path.parts else path.read_text())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A child started here never sees Ctrl-C, not even while it imports: its parent ends it.

    The signal is held back, not ignored, so the parent gets it as soon as the child is there.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would let the signal through again if started below
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def with_environment(values: Mapping[str, str]) -> Iterator[None]:
    """A process that is started within it has these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def descendants(pid: int | None) -> list[psutil.Process]:
    """The processes below one; none where that is gone."""
    with suppress(psutil.NoSuchProcess):
        return [] if pid is None else psutil.Process(pid).children(recursive=True)
    return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill the processes and wait until none runs. Ignores those that have already ended."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    deadline_s = time.monotonic() + _GONE_WITHIN_S
    while any(map(_runs, processes)) and time.monotonic() < deadline_s:
        time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    """False for a zombie: not every container's first process reaps its children."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def die_with_parent() -> None:
    """On Linux the kernel ends this process when its parent goes, however it goes."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

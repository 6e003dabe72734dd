"""The other ranks as child processes of rank 0, on its own machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

import harness
from harness.engine.device.parallel.address import Address
from harness.engine.device.parallel.rendezvous import LOOPBACK
from harness.engine.process_end import (
    EXIT_RANK_LOST,
    how_it_ended,
    last_words,
    leave_last_words,
)

_POLL_S = 1.0
_GRACE_S = 10.0
"""For one that is ending to be gone, and for rank 0 to see by itself that one is."""


class Starter(Protocol):
    """Brings the other ranks to a store that rank 0 keeps on `host`.

    is_awaited: rank 0 is doing something together with them.
    """

    is_awaited: bool

    @property
    def host(self) -> str: ...

    def start(self, address: Address, size: int) -> None: ...

    def reason_lost(self) -> str | None:
        """Which rank ended and how, as far as whoever started them knows."""
        ...

    def end(self) -> None:
        """Leave no rank but this one."""
        ...


class Spawned:
    """Starts them, and waits for each in a thread of its own: the first to end is the one that was
    lost, as all others follow it."""

    host = LOOPBACK

    def __init__(self) -> None:
        self.is_awaited = False
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._waiters: list[threading.Thread] = []
        self._first_end: str | None = None
        self._some_ended = threading.Event()
        self._is_known = threading.Event()

    @property
    def pids(self) -> dict[int, int]:
        """Of each rank its process."""
        return {rank: child.pid for rank, child in self._children.items()}

    def start(self, address: Address, size: int) -> None:
        root = str(Path(harness.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        for rank in range(1, size):
            arguments = (address.host, address.port, rank, size, os.getpid())
            module = "harness.engine.device.parallel.process"
            child = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)], env=environment
            )
            self._children[rank] = child
            who = f"rank {rank} of {size}"
            waiter = threading.Thread(target=self._wait, args=(child, who), daemon=True)
            self._waiters.append(waiter)
            waiter.start()

    def reason_lost(self) -> str | None:
        self._is_known.set()
        self._some_ended.wait(_GRACE_S)
        return self._first_end

    def end(self) -> None:
        self._is_known.set()
        for child in self._children.values():
            child.kill()
        for waiter in self._waiters:
            waiter.join()

    def _wait(self, child: subprocess.Popen[bytes], who: str) -> None:
        exit_code = child.wait()
        if self._some_ended.is_set():
            return
        self._first_end = last_words(child.pid) or f"{who} {how_it_ended(exit_code)}"
        self._some_ended.set()
        awaited_s = 0.0
        while awaited_s < _GRACE_S:
            if self._is_known.wait(_POLL_S):
                return
            awaited_s = awaited_s + _POLL_S if self.is_awaited else 0.0
        # a wait for a GPU cannot be interrupted, and its collective may never fail
        print(f"rank 0 ends: {self._first_end}", file=sys.stderr, flush=True)
        leave_last_words(self._first_end)
        os._exit(EXIT_RANK_LOST)

"""The other ranks as processes that torchrun has started.

All of them run the same command. Rank 0 does what the command says; the others wait at the
launcher's store for the groups that rank 0 forms, one for each model that it loads.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from harness.engine.device.parallel.address import Address

_NUM_GROUPS = "number of groups"
_NO_MORE = "no more"
_WAIT = timedelta(days=7)

LAST_WORDS_S = 5.0
"""For rank 0 to store a run that failed because a rank is gone, once torchrun ends all."""


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among those of a launch."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Address

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Launch | None:
        """What the variables say that torchrun sets; None for a process that it did not start.
        Others set the same ones without keeping a store at MASTER_PORT."""
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        size = int(environment["WORLD_SIZE"])
        if size == 1:
            return None
        rank = int(environment["RANK"])
        return cls(
            rank,
            size,
            int(environment.get("LOCAL_RANK", rank)),
            int(environment.get("LOCAL_WORLD_SIZE", size)),
            Address(environment["MASTER_ADDR"], int(environment["MASTER_PORT"])),
        )


class Launched:
    """How rank 0 of a launch reaches the others; see `spawned.Starter`."""

    def __init__(self, launch: Launch) -> None:
        self.is_awaited = False
        self._launch = launch

    @property
    def host(self) -> str:
        return self._launch.store.host

    def start(self, address: Address, size: int) -> None:
        if size != self._launch.size:
            raise ValueError(
                f"engine.tensor_parallel={size} in a launch of {self._launch.size} processes: "
                "both must be the same"
            )
        _announce(self._launch, f"{address.host} {address.port}")

    def reason_lost(self) -> str | None:
        return None  # the launcher says which of its processes ended, and ends the others

    def end(self) -> None:
        return None  # they see that this process has left, and wait for the next group


def follow_launch(launch: Launch) -> int:
    """What every rank but 0 of a launch does: serve group after group; the exit status."""
    from torch._C._distributed_c10d import TCPStore

    from harness.engine.device.parallel.follower import follow

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)
    store = TCPStore(*launch.store, is_master=False, timeout=_WAIT)
    number = 0
    while True:
        number += 1
        key = f"group {number}"
        store.wait([key])
        where = bytes(store.get(key)).decode()
        if where == _NO_MORE:
            return 0
        host, port = where.split()
        follow(Address(host, int(port)), launch.rank, launch.size, launch.local_rank)


def _end_soon(*_: object) -> None:
    """Rank 0 was sent the same signal: it is to end by itself, not for want of this one."""
    end = threading.Timer(LAST_WORDS_S, os._exit, (128 + signal.SIGTERM,))
    end.daemon = True
    end.start()


@contextmanager
def ending_followers(launch: Launch | None) -> Iterator[None]:
    """When rank 0 is done with its command, so are the others."""
    try:
        yield
    finally:
        if launch is not None:
            _announce(launch, _NO_MORE)


def _announce(launch: Launch, where: str) -> None:
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore(*launch.store, is_master=False)
    number = store.add(_NUM_GROUPS, 1)
    store.set(f"group {number}", where)

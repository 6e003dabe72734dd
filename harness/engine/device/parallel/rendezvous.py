"""How the ranks of a model find one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from harness.engine.device.parallel.address import Address
from harness.engine.device.parallel.channel import Channel
from harness.engine.device.parallel.ranks import RankGroup
from harness.engine.executor import RankLostError

LOOPBACK = "127.0.0.1"
MEETING_TIMEOUT = timedelta(minutes=5)
"""For a rank to start Python, import torch and say that it is there."""

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
_PAUSE_TIMEOUT = timedelta(days=7)
"""Between two steps lies whatever an open loop's arrivals leave; who has died is known without it,
as its connections close."""


_DEVICE = "device"


class Met(NamedTuple):
    """A rank's ends of the group. ranks: for the forward pass. channel: for what rank 0 says."""

    ranks: RankGroup
    channel: Channel


def open_store(device: str, host: str = LOOPBACK) -> tuple[TCPStore, Address]:
    """On rank 0: a store on a free port of `host`, and where the others find it."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=MEETING_TIMEOUT)
    store.set(_DEVICE, device)
    return store, Address(host, store.port)


def join_store(address: Address) -> TCPStore:
    """On any other rank."""
    return TCPStore(*address, is_master=False, timeout=MEETING_TIMEOUT)


def device_of(store: Store) -> str:
    """The kind of device that rank 0 runs on."""
    return bytes(store.get(_DEVICE)).decode()


def meet(
    store: Store,
    rank: int,
    size: int,
    device: str,
    diagnosed: Callable[[RuntimeError], RankLostError],
) -> Met:
    """Wait for all ranks. Tensors on a GPU are reduced by NCCL, everything else by gloo."""
    try:
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=_PAUSE_TIMEOUT
        )
        control = dist.new_group(backend="gloo", timeout=_PAUSE_TIMEOUT)
        backend = "nccl" if device == "cuda" else "gloo"
        data = dist.new_group(backend=backend, timeout=_COLLECTIVE_TIMEOUT)
    except RuntimeError as error:
        raise diagnosed(error) from error
    assert isinstance(control, dist.ProcessGroup) and isinstance(data, dist.ProcessGroup)
    return Met(RankGroup(rank, size, data, diagnosed), Channel(control, diagnosed))


def part() -> None:
    """Leave the group that this process met."""
    if dist.is_initialized():
        dist.destroy_process_group()


def take_device(device: str, local_rank: int) -> None:
    """Of a machine's GPUs each rank has one."""
    if device == "cuda":
        torch.cuda.set_device(local_rank)


def leave_last_words(store: Store, rank: int, words: str) -> None:
    """Say why this rank ends, before it does."""
    store.set(f"last words of {rank}", words)


def last_words(store: Store, ranks: Iterable[int]) -> str | None:
    """What one of `ranks` said of why it ends."""
    for rank in ranks:
        if store.check([f"last words of {rank}"]):
            return bytes(store.get(f"last words of {rank}")).decode()
    return None


def what_failed(error: RuntimeError) -> str:
    """Gloo's own words on a connection, without the place in its source and its advice."""
    line = next(iter(str(error).splitlines()), "no reason given")
    return re.sub(r"^\[[^]]*\] ", "", line).split(". This is typically")[0]

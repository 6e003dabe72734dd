"""Keeps each of torch's threads on a core of its own.

All threads wait for the slowest one at the end of every matrix product. When another process uses
part of a core, the scheduler may move two of the threads to the same core, and each product then
takes about twice as long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numba import types

from kernels.cpu_compiled import jit, num_threads, on_threads

_set_affinity = types.ExternalFunction(
    "sched_setaffinity", types.int32(types.int32, types.uintp, types.uintp)
)


@contextmanager
def own_cores() -> Iterator[None]:
    """Binds each of torch's threads to one core inside the block, and restores the caller's cores
    afterwards. With more than two threads the calling thread stays unbound: OpenMP may end threads
    and start new ones, and new threads and processes inherit the binding of their creator. Does
    nothing if the system has no `sched_setaffinity`, or if the number of threads is not the number
    of usable cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) < 2 or num_threads() != len(cores):
        yield
        return
    own = cores[:1] if len(cores) == 2 else cores
    _restrict([own, *([core] for core in cores[1:])])
    try:
        yield
    finally:
        _restrict([cores] * len(cores))


def _restrict(cores: Sequence[Sequence[int]]) -> None:
    """Let each thread run on these cores alone."""
    masks = np.zeros((len(cores), 8 * (max(map(max, cores)) // 64 + 1)), np.uint8)
    for mask, chosen in zip(masks, cores, strict=True):
        for core in chosen:
            mask[core // 8] |= 1 << core % 8
    _set_masks(len(cores), masks)


@jit
def _set_mask(thread, threads, masks):  # type: ignore[no-untyped-def]
    _set_affinity(0, masks.shape[1], masks[thread].ctypes.data)


_set_on_threads = on_threads(_set_mask)


@jit
def _set_masks(threads, masks):  # type: ignore[no-untyped-def]
    _set_on_threads(threads, (masks,))

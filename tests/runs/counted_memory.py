"""A stand-in for a device's memory counters: the bytes of every tensor made on the CPU."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class CountedMemory(TorchDispatchMode):
    """As `harness.runs.device_memory.DeviceMemory`, of tensors that are made while it is entered
    (but for those in oneDNN's own layout, which have no storage to count).

    fail_above: an allocation beyond so many bytes raises what a GPU's allocator would.
    """

    def __init__(self, total_bytes: int) -> None:
        super().__init__()
        self.total_bytes = total_bytes
        self.fail_above: int | None = None
        self.device_fails = False
        self.num_given_back = 0
        self._held: dict[int, int] = {}
        self._now = self._peak = 0

    def allocated_bytes(self) -> int:
        return self._now

    def peak_bytes(self) -> int:
        return self._peak

    def reset_peak(self) -> None:
        self._peak = self._now

    def give_back(self) -> None:
        if self.device_fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.num_given_back += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps one object for a storage as long as that lives
        if key in self._held:
            return
        self._held[key] = storage.nbytes()
        self._now += storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self._peak = max(self._peak, self._now)
        if self.fail_above is not None and self._now > self.fail_above:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {storage.nbytes() / 2**20:.2f} MiB. GPU 0 "
                "has a total capacity of 1 KiB of which nothing is free."
            )

    def _forget(self, key: int) -> None:
        self._now -= self._held.pop(key)

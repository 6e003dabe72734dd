"""The counters of a device's memory, which its runs are sized by and held to."""

from __future__ import annotations

from typing import Protocol

import torch


class DeviceMemory(Protocol):
    """All in bytes, of this process's tensors."""

    @property
    def total_bytes(self) -> int:
        """What the device has, whoever uses it."""
        ...

    def allocated_bytes(self) -> int:
        """Held by tensors now."""
        ...

    def peak_bytes(self) -> int:
        """Most that was held since `reset_peak`."""
        ...

    def reset_peak(self) -> None: ...

    def give_back(self) -> None:
        """Wait for the device, then return what no tensor holds. Raises RuntimeError where the
        device failed and nothing more can be done with it in this process."""
        ...


class CudaMemory:
    """Torch's own allocator on the first GPU. The CUDA context and other processes are not in its
    counters: kv.memory_fraction leaves room for them."""

    @property
    def total_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(0).total_memory)

    def allocated_bytes(self) -> int:
        return int(torch.cuda.memory_allocated())

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def give_back(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

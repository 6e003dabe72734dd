"""Published figures of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_MIB = 2**20


class Gpu(NamedTuple):
    """As on the maker's data sheet, but for the memory, which is what the driver reports: the
    data sheet's GB are of 2**30 bytes, less what the device keeps for itself.

    flops: of 16-bit matrix products, dense. pcie_bytes_per_s: one way. peer_bytes_per_s: one way
    to other GPUs, half of what is published for NVLink, which counts both ways; PCIe where there
    is no NVLink.
    """

    memory_bytes: float
    bytes_per_s: float
    flops: float
    pcie_bytes_per_s: float
    peer_bytes_per_s: float


GPUS: Mapping[str, Gpu] = {
    "a100_40gb": Gpu(40960 * _MIB, 1555e9, 312e12, 32e9, 300e9),
    "a100_80gb": Gpu(81920 * _MIB, 2039e9, 312e12, 32e9, 300e9),
    "h100": Gpu(81559 * _MIB, 3350e9, 989e12, 64e9, 450e9),
    "h200": Gpu(143771 * _MIB, 4800e9, 989e12, 64e9, 450e9),
    "l4": Gpu(23034 * _MIB, 300e9, 121e12, 32e9, 32e9),
}
"""A100 SXM4, H100 SXM5 and H200 SXM5, L4; from NVIDIA's data sheets of these products."""

"""Published figures of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Gpu(NamedTuple):
    """As on the maker's data sheet.

    flops: of 16-bit matrix products, dense. pcie_bytes_per_s: one way.
    """

    memory_bytes: float
    bytes_per_s: float
    flops: float
    pcie_bytes_per_s: float


GPUS: Mapping[str, Gpu] = {
    "a100_40gb": Gpu(40e9, 1555e9, 312e12, 32e9),
    "a100_80gb": Gpu(80e9, 2039e9, 312e12, 32e9),
    "h100": Gpu(80e9, 3350e9, 989e12, 64e9),
    "h200": Gpu(141e9, 4800e9, 989e12, 64e9),
    "l4": Gpu(24e9, 300e9, 121e12, 32e9),
}
"""A100 SXM4, H100 SXM5 and H200 SXM5, L4; from NVIDIA's data sheets of these products."""

"""Sweeps the tile, warps, stages and splits of the attention kernels."""

from __future__ import annotations

from typing import Any

from benchmarks.decode_cases import Store


def run(bench: Any, store: Store) -> None:
    """Filled in with the kernels' overrides."""
    raise NotImplementedError

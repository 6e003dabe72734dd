"""The attention kernels of one kind behind one name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class PagedAttention(Protocol):
    """`kernels.reference.paged_attention`, which says what is promised."""

    def __call__(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_table: Tensor,
        page_size: int,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


class ContiguousAttention(Protocol):
    """`kernels.reference.contiguous_attention`."""

    def __call__(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        start_slots: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """Kernels that share a KV layout: (num_slots, num_kv_heads, head_dim) a layer, slot-major.

    max_page_size: None takes every page size from 1 up; a number takes powers of two up to it.
    max_head_dim: None takes every head size; a number takes multiples of 8 up to it.
    """

    name: str
    paged_attention: PagedAttention
    contiguous_attention: ContiguousAttention
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    copy_pages: Callable[[Tensor, Tensor, Tensor, int, int | None], None]
    dtypes: tuple[torch.dtype, ...]
    max_page_size: int | None = None
    max_head_dim: int | None = None

    def check(
        self,
        *,
        page_size: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        """Raise ValueError, with the way out, for what these kernels don't take."""
        limit = self.max_page_size
        if page_size < 1 or (limit and (page_size > limit or page_size & (page_size - 1))):
            taken = f"powers of two from 1 to {limit}" if limit else "any whole number from 1 up"
            other = "; the reference and cpu kernels take any" if limit and page_size >= 1 else ""
            raise ValueError(f"page size {page_size}: {self.name} kernels take {taken}{other}")
        if num_kv_heads < 1 or num_q_heads % num_kv_heads:
            raise ValueError(
                f"{num_q_heads} query heads over {num_kv_heads} KV heads: "
                "the number of query heads must be a multiple of the number of KV heads"
            )
        limit = self.max_head_dim
        if head_dim < 1 or (limit and (head_dim > limit or head_dim % 8)):
            taken = f"multiples of 8 from 8 to {limit}" if limit else "any whole number from 1 up"
            other = "; the reference kernels take any" if limit and head_dim >= 1 else ""
            raise ValueError(f"head dimension {head_dim}: {self.name} kernels take {taken}{other}")
        if dtype not in self.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            raise ValueError(f"KV dtype {dtype}: {self.name} kernels take {names}; set kv.dtype")


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MODULES = {"reference": "reference", "cpu": "cpu", "triton": "triton_attention"}


def load(device_type: str, name: str = "auto") -> AttentionBackend:
    """The kernels called `name` ("reference", "cpu" or "triton") for a device type.

    "auto" is triton on a CUDA device and cpu on a CPU. Raises ValueError for an unknown name and
    for kernels that cannot run on the device.
    """
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")
    if name not in _MODULES:
        raise ValueError(f"unknown kernels {name!r}: take auto, {', '.join(_MODULES)}")
    if name == "cpu" and device_type != "cpu":
        raise ValueError(f"cpu kernels on a {device_type} device: take auto, triton or reference")
    if name == "triton" and device_type != "cuda" and not _triton_is_interpreted():
        raise ValueError(
            f"triton kernels on a {device_type} device: they need CUDA; take auto, cpu or reference"
        )
    module = importlib.import_module(f"kernels.{_MODULES[name]}")
    return AttentionBackend(
        name=name,
        paged_attention=module.paged_attention,
        contiguous_attention=module.contiguous_attention,
        store_kv=module.store_kv,
        copy_pages=module.copy_pages,
        dtypes=_FLOATS,
        max_page_size=256 if name == "triton" else None,
        max_head_dim=256 if name == "triton" else None,
    )


def _triton_is_interpreted() -> bool:
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)

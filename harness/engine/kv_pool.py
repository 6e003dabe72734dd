"""The memory that pages live in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from allocators.base import PageCopy
from harness.engine.model_shape import ModelShape


def resolve_copies(copies: Iterable[PageCopy]) -> tuple[PageCopy, ...]:
    """Copies that, with all sources read first, do what `copies` do one after the other.

    A source that an earlier copy wrote is traced to where its contents came from; of several
    copies into one page the last stands; copies of a page onto itself are dropped.
    """
    origin: dict[int, int] = {}
    for source, destination in copies:
        origin[destination] = origin.get(source, source)
    return tuple(PageCopy(s, d) for d, s in origin.items() if s != d)


class KVPool:
    """Keys and values of all layers in one tensor, slot-major.

    storage: (layers, 2, num_pages * page_size, kv_heads, head_dim); slot = page_id *
    page_size + offset. `poison` fills it with NaN, so that reading what was never written
    shows.
    """

    def __init__(
        self,
        shape: ModelShape,
        num_pages: int,
        page_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        slots = num_pages * page_size
        size = (shape.num_layers, 2, slots, shape.num_kv_heads, shape.head_dim)
        self.storage = torch.empty(size, dtype=dtype, device=device)
        if poison:
            self.storage.fill_(float("nan"))
        self.caches: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (layer[0], layer[1]) for layer in self.storage
        )

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        layers, two, _, heads, head_dim = self.storage.shape
        return layers * two * heads * head_dim * self.storage.element_size()

    @property
    def kv_bytes(self) -> int:
        """Size of the pool: slots times bytes per token, which is what the storage measures."""
        return self.num_pages * self.page_size * self.bytes_per_token

    def copy(self, copies: Iterable[PageCopy], kernels: Any) -> None:
        """Copy whole pages as if one after the other."""
        if not (resolved := resolve_copies(copies)):
            return
        pairs = torch.tensor(resolved, dtype=torch.int64, device=self.storage.device)
        kernels.copy_pages(self.storage[:, 0], self.storage[:, 1], pairs, self.page_size)

"""The memory that pages live in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from allocators.base import PageCopy
from harness.engine.device.model_shape import LayerGroup, ModelShape


class KVPool:
    """Keys and values of all layers in one tensor, slot-major.

    storage: (layers of a group, 2, num_pages * page_size, kv_heads, head_dim); slot = page_id *
    page_size + offset. A page holds the KV of one group's layers (all layers unless `groups`
    says otherwise; groups are of equal size), so layers at the same place in different groups
    share memory and never a page. `poison` fills it with NaN, so that reading what was never
    written shows.
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
        groups: Sequence[LayerGroup] = (),
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.groups = tuple(groups) or (LayerGroup.merged(shape.layer_groups),)
        slots = num_pages * page_size
        num_layers = len(self.groups[0].layers)
        size = (num_layers, 2, slots, shape.num_kv_heads, shape.head_dim)
        self.storage = torch.empty(size, dtype=dtype, device=device)
        if poison:
            self.storage.fill_(float("nan"))
        place = {
            layer: (number, self.storage[index])
            for number, group in enumerate(self.groups)
            for index, layer in enumerate(group.layers)
        }
        self.caches: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (place[layer][1][0], place[layer][1][1]) for layer in range(shape.num_layers)
        )
        self.group_of: tuple[int, ...] = tuple(place[layer][0] for layer in range(shape.num_layers))

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Of each layer its group, and its place in `storage`."""
        return tuple(
            (number, group.layers.index(layer))
            for layer, number in enumerate(self.group_of)
            for group in (self.groups[number],)
        )

    @property
    def bytes_per_slot(self) -> int:
        """Keys and values of one token in the layers of one group."""
        layers, two, _, heads, head_dim = self.storage.shape
        return layers * two * heads * head_dim * self.storage.element_size()

    @property
    def kv_bytes(self) -> int:
        """Size of the pool: slots times bytes per slot, which is what the storage measures."""
        return self.num_pages * self.page_size * self.bytes_per_slot

    def copy(self, copies: Sequence[PageCopy], kernels: Any) -> None:
        """Copy whole pages; all sources are read before any destination is written."""
        if not copies:
            return
        ordered, num_staged = staged_first(copies)
        pairs = _on_device(ordered, self.storage.device)
        keys, values = self.storage[:, 0], self.storage[:, 1]
        kernels.copy_pages(keys, values, pairs, self.page_size, num_staged)


def staged_first(copies: Sequence[PageCopy]) -> tuple[list[PageCopy], int]:
    """`copies` with those first whose source another one writes, and how many these are.

    Only they have to be read before anything is written; most steps have none, as copy-on-write
    and forks write to pages that were free.
    """
    written = {copy.destination for copy in copies}
    staged = [copy for copy in copies if copy.source in written]
    if not staged:
        return list(copies), 0
    return staged + [copy for copy in copies if copy.source not in written], len(staged)


def _on_device(pairs: Sequence[PageCopy], device: torch.device) -> Tensor:
    """int64 (n, 2). From pinned memory to a GPU, as the host would otherwise wait for it."""
    on_gpu = device.type == "cuda"
    numbers = torch.tensor(pairs, dtype=torch.int64, pin_memory=on_gpu)
    return numbers.to(device, non_blocking=True)


class HostKV:
    """Pages on the host, in the pool's own layout; pinned where the pool is on a GPU.

    On a GPU a kernel reads and writes the pinned pages in place: one launch whatever the number
    of pages and layers, in order with what wrote the pages and what will read them. `direct`
    says whether that kernel moves the pages; by default where the pool is on a GPU.
    """

    def __init__(self, pool: KVPool, num_pages: int, direct: bool | None = None) -> None:
        layers, two, _, heads, head_dim = pool.storage.shape
        on_gpu = pool.storage.device.type == "cuda"
        self.num_pages = num_pages
        self.direct = on_gpu if direct is None else direct
        self.storage = torch.empty(
            (layers, two, num_pages * pool.page_size, heads, head_dim),
            dtype=pool.storage.dtype,
            pin_memory=on_gpu and num_pages > 0,
        )

    def save(self, pool: KVPool, pages: Iterable[PageCopy]) -> None:
        """Copy these pages of the pool to the host, before anything else writes to them."""
        self._move(pool.storage, self.storage, list(pages), pool)

    def restore(self, pool: KVPool, pages: Iterable[PageCopy]) -> None:
        """Copy these pages of the host to the pool, before the next forward reads them."""
        self._move(self.storage, pool.storage, list(pages), pool)

    def _move(
        self, source: Tensor, destination: Tensor, pages: list[PageCopy], pool: KVPool
    ) -> None:
        if not self.direct:
            _copy_runs(source, destination, pages, pool.page_size)
        elif pages:
            from kernels.triton_cache import move_pages

            moves = _on_device(pages, pool.storage.device)
            move_pages(source, destination, moves, pool.page_size)


def _copy_runs(source: Tensor, destination: Tensor, pairs: list[PageCopy], page_size: int) -> None:
    """One strided copy a run of consecutive pages on both sides."""
    begin = 0
    for end in range(1, len(pairs) + 1):
        if end < len(pairs) and (
            pairs[end].source - pairs[end - 1].source == 1
            and pairs[end].destination - pairs[end - 1].destination == 1
        ):
            continue
        slots = (end - begin) * page_size
        first, to = pairs[begin].source * page_size, pairs[begin].destination * page_size
        destination[:, :, to : to + slots].copy_(source[:, :, first : first + slots])
        begin = end

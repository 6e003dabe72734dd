"""Ragged batches over a poisoned pool, for tests that compare kernels with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    dtype: torch.dtype = torch.float32


DEFAULT_SHAPE = Shape()


class Batch(NamedTuple):
    """Arguments of paged_attention, in order, and of contiguous_attention over the same data."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    page_size: int
    query_start_loc: Tensor
    seq_lens: Tensor

    def outside(self) -> Tensor:
        """An output full of NaN."""
        return torch.full_like(self.query, torch.nan)

    def contiguous(self, spare: int = 3) -> tuple[Any, ...]:
        """The same tokens side by side, `spare` poisoned slots between sequences."""
        starts, slots, at = [], [], spare
        for table, length in zip(self.block_table.long(), self.seq_lens.tolist(), strict=True):
            positions = torch.arange(length)
            pages = table[positions // self.page_size]
            slots.append((at + positions, pages * self.page_size + positions % self.page_size))
            starts.append(at)
            at += length + spare
        caches = []
        for cache in (self.key_cache, self.value_cache):
            side_by_side = torch.full((at, *cache.shape[1:]), torch.nan, dtype=cache.dtype)
            for new, old in slots:
                mapped = old >= 0
                side_by_side[new[mapped]] = cache[old[mapped]]
            caches.append(side_by_side)
        start_slots = torch.tensor(starts, dtype=torch.int32)
        return (self.query, *caches, start_slots, self.query_start_loc, self.seq_lens)


def make_batch(
    lens: Sequence[tuple[int, int]],
    shape: Shape = DEFAULT_SHAPE,
    *,
    window: int | None = None,
    seed: int = 0,
) -> Batch:
    """A batch of (query tokens, context) pairs on shuffled pages.

    Every slot that no sequence may read is NaN: pages of nobody, the rest of last pages, and with
    a window the pages that it has left behind, whose table entries are -1.
    """
    random = torch.Generator().manual_seed(seed)
    page_size = shape.page_size
    pages_each = [-(-context // page_size) for _, context in lens]
    pool = torch.randperm(sum(pages_each) + 5, generator=random).to(torch.int32)
    kv_shape = (len(pool) * page_size, shape.kv_heads, shape.head_dim)
    key_cache = torch.full(kv_shape, torch.nan, dtype=shape.dtype)
    value_cache = key_cache.clone()
    table = torch.full((len(lens), max(pages_each) + 2), -1, dtype=torch.int32)
    used = 0
    for i, (queries, context) in enumerate(lens):
        left_behind = 0 if window is None else max(0, context - queries - window + 1)
        first_page = left_behind // page_size
        table[i, first_page : pages_each[i]] = pool[used + first_page : used + pages_each[i]]
        used += pages_each[i]
        positions = torch.arange(first_page * page_size, context)
        slots = table[i].long()[positions // page_size] * page_size + positions % page_size
        for cache in (key_cache, value_cache):
            data = torch.randn((len(slots), *kv_shape[1:]), generator=random)
            cache[slots] = data.to(shape.dtype)
    bounds = torch.tensor([0, *(queries for queries, _ in lens)], dtype=torch.int32).cumsum(0).int()
    query = torch.randn((int(bounds[-1]), shape.q_heads, shape.head_dim), generator=random)
    seq_lens = torch.tensor([context for _, context in lens], dtype=torch.int32)
    return Batch(query.to(shape.dtype), key_cache, value_cache, table, page_size, bounds, seq_lens)

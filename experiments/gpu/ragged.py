"""Ragged batches over poisoned pools on any device, and attention over them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    query: int = 32
    kv: int = 8
    dim: int = 128


class Ragged(NamedTuple):
    """Arguments of `paged_attention` in order, and what `contiguous_attention` takes in place of
    the table: the same tokens side by side from `start_slots` on."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    page_size: int
    query_start_loc: Tensor
    seq_lens: Tensor
    flat_keys: Tensor
    flat_values: Tensor
    start_slots: Tensor

    def paged(self) -> tuple[Tensor | int, ...]:
        """Arguments of `paged_attention`."""
        return self[:7]

    def contiguous(self) -> tuple[Tensor, ...]:
        """Arguments of `contiguous_attention`."""
        caches = (self.flat_keys, self.flat_values, self.start_slots)
        return (self.query, *caches, self.query_start_loc, self.seq_lens)


def make_ragged(
    lens: Sequence[tuple[int, int]],
    heads: Heads,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None = None,
    seed: int = 0,
    first_page: int = 0,
) -> Ragged:
    """(query tokens, context) pairs on shuffled pages from `first_page` on.

    Every slot that no sequence may read is NaN: the rest of last pages, pages of nobody, and with
    a window the pages behind it, whose table entries are -1.
    """
    random = torch.Generator().manual_seed(seed)
    spare = 3
    starts, total = [], spare
    for _, context in lens:
        starts.append(total)
        total += context + spare
    shape = (total, heads.kv, heads.dim)
    flat = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2)]
    pages_each = [-(-context // page_size) for _, context in lens]
    shuffled = first_page + torch.randperm(sum(pages_each) + 5, generator=random)
    slots = (first_page + sum(pages_each) + 5) * page_size
    caches = [_poisoned(slots, first_page * page_size, heads, dtype, device) for _ in range(2)]
    table = torch.full((len(lens), max(pages_each) + 2), -1, dtype=torch.int32)
    used = 0
    for row, (queries, context) in enumerate(lens):
        behind = 0 if window is None else max(0, context - queries - window + 1)
        low = behind // page_size
        own = shuffled[used + low : used + pages_each[row]]
        table[row, low : pages_each[row]] = own.int()
        used += pages_each[row]
        positions = torch.arange(low * page_size, context)
        places = table[row].long()[positions // page_size] * page_size + positions % page_size
        for cache, side in zip(caches, flat, strict=True):
            data = torch.randn((len(positions), heads.kv, heads.dim), generator=random)
            moved = data.to(device, dtype)
            cache[places.to(device)] = moved
            side[(starts[row] + positions).to(device)] = moved
    bounds = torch.tensor([0, *(queries for queries, _ in lens)]).cumsum(0)
    query = torch.randn((int(bounds[-1]), heads.query, heads.dim), generator=random)
    return Ragged(
        query.to(device, dtype),
        *caches,
        table.to(device),
        page_size,
        bounds.to(device, torch.int32),
        torch.tensor([context for _, context in lens], dtype=torch.int32, device=device),
        *flat,
        torch.tensor(starts, dtype=torch.int32, device=device),
    )


def exact_attention(
    batch: Ragged, *, scale: float, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """Attention over the side-by-side tokens in float64, a sequence and head group at a time."""
    group = batch.query.shape[1] // batch.flat_keys.shape[1]
    out = torch.zeros_like(batch.query, dtype=torch.float64)
    bounds = batch.query_start_loc.tolist()
    ends = zip(batch.start_slots.tolist(), batch.seq_lens.tolist(), strict=True)
    for row, (start, context) in enumerate(ends):
        first, last = bounds[row], bounds[row + 1]
        if first == last or context == 0:
            continue
        at = torch.arange(context - (last - first), context, device=out.device)
        low = 0 if window is None else max(0, int(at[0]) - window + 1)
        seen = torch.arange(low, context, device=out.device)
        keys, values = (c[start + low : start + context].double() for c in batch[7:9])  # type: ignore[union-attr]
        query = batch.query[first:last].double()
        logits = torch.einsum("qhd,khd->hqk", query, keys.repeat_interleave(group, 1)) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        hidden = seen[None, :] > at[:, None]
        if window is not None:
            hidden |= seen[None, :] <= at[:, None] - window
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, 1))
    return out


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the truth; NaN where anything is NaN."""
    difference = (ours.double() - exact.double()).norm()
    return float(difference / exact.double().norm().clamp_min(1e-30))


def _poisoned(
    slots: int, untouched: int, heads: Heads, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """NaN in every slot but the first `untouched`, which are left as they come."""
    cache = torch.empty((slots, heads.kv, heads.dim), dtype=dtype, device=device)
    cache[untouched:] = torch.nan
    return cache

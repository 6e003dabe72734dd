"""Decode attention over one large store of keys and values, by every kernel that can be had.

All contenders of a shape read the same bytes: the paged ones through shuffled tables, ours without
a table and torch's from consecutive slots. A case holds as many sets of sequences as make their KV
three times the L2 cache, and the calls take turns over them, so that none finds its keys cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.backend import AttentionBackend
from kernels.cost import Cost, attention_cost

_CACHES_BEYOND_L2 = 3
_MOST_SETS = 128


class Shape(NamedTuple):
    """Heads and element type of one layer."""

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


class Case(NamedTuple):
    """page_size 0: keys and values side by side, no table."""

    batch: int
    context: int
    page_size: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context


@dataclass(frozen=True, slots=True)
class Store:
    """Random keys and values of one layer, (slots, kv_heads, head_dim) each, allocated once."""

    shape: Shape
    keys: Tensor
    values: Tensor
    l2_bytes: int

    @classmethod
    def filled(cls, shape: Shape, slots: int, device: torch.device, l2_bytes: int) -> Store:
        """Standard normal numbers in `slots` slots."""
        size = (slots, shape.kv_heads, shape.head_dim)
        keys, values = (torch.empty(size, dtype=shape.dtype, device=device) for _ in range(2))
        return cls(shape, keys.normal_(), values.normal_(), l2_bytes)

    def num_sets(self, case: Case) -> int:
        """Sets of sequences that the calls of `case` take turns over: two at least, if they fit,
        so that no call finds what the one before it left in the cache."""
        set_bytes = case.tokens * self.shape.token_bytes
        wanted = max(2, -(-_CACHES_BEYOND_L2 * self.l2_bytes // set_bytes))
        return max(1, min(wanted, _MOST_SETS, len(self.keys) // case.tokens))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the calls of a case read. queries, outs: (batch, q_heads, head_dim) a set. tables:
    (batch, pages) int32 a set, with page_size > 0; starts: (batch,) int32 a set, otherwise."""

    case: Case
    store: Store
    queries: Sequence[Tensor]
    outs: Sequence[Tensor]
    tables: Sequence[Tensor]
    starts: Sequence[Tensor]
    query_start_loc: Tensor
    seq_lens: Tensor

    @property
    def scale(self) -> float:
        return float(self.store.shape.head_dim**-0.5)

    def pages(self) -> tuple[Tensor, Tensor]:
        """Keys and values as (pages, page_size, kv_heads, head_dim)."""
        size = self.case.page_size
        whole = len(self.store.keys) // size * size
        view = (-1, size, *self.store.keys.shape[1:])
        return self.store.keys[:whole].view(view), self.store.values[:whole].view(view)


def make_inputs(store: Store, case: Case, seed: int = 0) -> Inputs:
    """Sets of sequences of equal length over `store`, pages shuffled over all of them."""
    device, shape = store.keys.device, store.shape
    num_sets = store.num_sets(case)
    random = torch.Generator(device=device).manual_seed(seed)
    whole = {"dtype": torch.int32, "device": device}
    tables, starts = [], []
    if case.page_size:
        if case.context % case.page_size:
            raise ValueError(f"context {case.context} is no multiple of page {case.page_size}")
        pages = num_sets * case.tokens // case.page_size
        order = torch.randperm(pages, generator=random, device=device).to(torch.int32)
        tables = list(order.view(num_sets, case.batch, -1).unbind())
    else:
        first = torch.arange(num_sets * case.batch, **whole) * case.context
        starts = list(first.view(num_sets, case.batch).unbind())
    size = (num_sets, case.batch, shape.q_heads, shape.head_dim)
    queries = torch.empty(size, dtype=shape.dtype, device=device).normal_(generator=random)
    return Inputs(
        case,
        store,
        queries.unbind(),
        torch.full_like(queries, torch.nan).unbind(),
        tables,
        starts,
        torch.arange(case.batch + 1, **whole),
        torch.full((case.batch,), case.context, **whole),
    )


def our_calls(backend: AttentionBackend, inputs: Inputs) -> list[Callable[[], Tensor]]:
    """A call a set: with a table where the case has pages, without one otherwise."""
    caches = (inputs.store.keys, inputs.store.values)
    bounds = (inputs.query_start_loc, inputs.seq_lens)
    options = {"scale": inputs.scale}

    def paged(query: Tensor, out: Tensor, table: Tensor) -> Tensor:
        size = inputs.case.page_size
        return backend.paged_attention(query, *caches, table, size, *bounds, out=out, **options)

    def contiguous(query: Tensor, out: Tensor, starts: Tensor) -> Tensor:
        return backend.contiguous_attention(query, *caches, starts, *bounds, out=out, **options)

    call, places = (paged, inputs.tables) if inputs.case.page_size else (contiguous, inputs.starts)
    return [
        lambda q=query, o=out, p=place: call(q, o, p)  # type: ignore[misc]
        for query, out, place in zip(inputs.queries, inputs.outs, places, strict=True)
    ]


def error_of(out: Tensor, inputs: Inputs) -> float:
    """Relative error in norm of the first set's first and last sequence, against the reference in
    float32 over the same slots."""
    case, store = inputs.case, inputs.store
    rows = sorted({0, case.batch - 1})
    query = inputs.queries[0][rows].float()
    bounds = inputs.query_start_loc[: len(rows) + 1]
    args = (bounds, inputs.seq_lens[rows])
    if case.page_size:
        exact = reference.paged_attention(
            query, store.keys, store.values, inputs.tables[0][rows], case.page_size, *args,
            scale=inputs.scale,
        )  # fmt: skip
    else:
        exact = reference.contiguous_attention(
            query, store.keys, store.values, inputs.starts[0][rows], *args, scale=inputs.scale
        )
    ours = out.view(case.batch, *query.shape[1:])[rows].float()
    return float((ours - exact).norm() / exact.norm())


def cost_of(case: Case, shape: Shape) -> Cost:
    """Bytes and operations of one call that nobody can do without."""
    return attention_cost(
        [1] * case.batch,
        [case.context] * case.batch,
        num_q_heads=shape.q_heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        element_bytes=shape.dtype.itemsize,
        page_size=case.page_size or None,
    )

"""Prefill attention, KV stores, page copies and swap: time beside bytes and operations.

Calls take turns over inputs beyond the L2 cache; those of swap do not, as the link is the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.decode_cases import Shape
from experiments.gpu.child import guarded
from experiments.gpu.rows import RowLog
from kernels.backend import AttentionBackend
from kernels.cost import Cost, attention_cost, copy_pages_cost, store_kv_cost, swap_pages_cost

_PAGE = 16
_MOST_SETS = 512


class Sizes(NamedTuple):
    """prefill: (sequences, new tokens, context). tokens: of the element-wise kernels. copies:
    pages moved in one call, in a pool of `num_pages` pages and `num_layers` layers."""

    prefill: Sequence[tuple[int, int, int]]
    tokens: Sequence[int]
    copies: Sequence[int]
    num_pages: int
    num_layers: int


GPU = Sizes(
    ((1, 4096, 4096), (8, 512, 512), (4, 512, 8192)), (64, 256, 4096), (1, 64, 512), 2048, 32
)
CPU = Sizes(((1, 512, 512), (1, 512, 4096)), (32, 512), (1, 64), 512, 8)
DRY = Sizes(((1, 8, 8), (2, 4, 12)), (4,), (1, 3), 8, 2)


class Bench(Protocol):
    """`kernels.Bench`."""

    log: RowLog
    device: torch.device
    backend: AttentionBackend

    def measure(
        self, case: str, bench: str, calls: Sequence[Any], *, capture: bool = True, **facts: Any
    ) -> Any: ...
    def skips(self, case: str) -> bool: ...


def run(bench: Bench, shape: Shape, sizes: Sizes, l2_bytes: int) -> None:
    """Every case, in the order of this module."""
    run_cases(bench, cases(bench, shape, sizes, l2_bytes))


def run_cases(bench: Bench, named: Iterable[tuple[str, str, Callable[[], Prepared]]]) -> None:
    """Measure what has no row yet."""
    for name, group, prepare in named:
        if not bench.skips(name):
            guarded(bench.log, name, _one, bench, name, group, prepare)


def _one(bench: Bench, name: str, group: str, prepare: Callable[[], Prepared]) -> None:
    calls, cost, facts, capture = prepare()
    bench.measure(name, group, calls, capture=capture, **cost._asdict(), **facts)


class Prepared(NamedTuple):
    """capture: as of `Timer.time`."""

    calls: Sequence[Callable[[], object]]
    cost: Cost
    facts: dict[str, Any]
    capture: bool = True


def cases(
    bench: Bench, shape: Shape, sizes: Sizes, l2_bytes: int
) -> Iterator[tuple[str, str, Callable[[], Prepared]]]:
    """Name, group and preparation of each case."""
    for chunk in sizes.prefill:
        name = f"prefill, {chunk[0]} x {chunk[1]} of {chunk[2]}"
        yield f"{name}, paged", "prefill", partial(prefill, bench, shape, *chunk, l2_bytes)
        if chunk[1] == chunk[2]:
            yield f"{name}, sdpa", "prefill", partial(causal_sdpa, bench, shape, *chunk, l2_bytes)
    for tokens in sizes.tokens:
        yield f"store_kv, {tokens} tokens", "store", partial(store, bench, shape, tokens, l2_bytes)
    for count in sizes.copies:
        where = (bench, shape, sizes, count)
        yield f"copy_pages, {count} pages", "copy", partial(copies, *where, 0, l2_bytes)
        staged = f"copy_pages, {count} pages, all staged"
        yield staged, "copy", partial(copies, *where, count, l2_bytes)
        for way in ("out", "in"):
            yield f"swap {way}, {count} pages", "swap", partial(swap, *where, way)


def num_sets(set_bytes: int, l2_bytes: int) -> int:
    """Inputs that together are three times the cache."""
    return max(1, min(_MOST_SETS, -(-3 * l2_bytes // set_bytes)))


def prefill(
    bench: Bench, shape: Shape, count: int, new: int, context: int, l2_bytes: int
) -> Prepared:
    """Ragged causal attention of `count` chunks over shuffled pages."""
    cost = chunk_cost(shape, count, new, context)
    calls = []
    for _ in range(num_sets(cost.moved_bytes, l2_bytes)):
        arguments, options = chunk_inputs(bench.device, shape, count, new, context)
        calls.append(partial(bench.backend.paged_attention, *arguments, **options))
    return Prepared(calls, cost, {"contender": "paged", "sets": len(calls)})


def chunk_inputs(
    device: torch.device, shape: Shape, count: int, new: int, context: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `paged_attention` for the last `new` of `context` tokens of `count` prompts."""
    pages_each = -(-context // _PAGE)
    size = (count * pages_each * _PAGE, shape.kv_heads, shape.head_dim)
    keys, values = (torch.randn(size, device=device).to(shape.dtype) for _ in range(2))
    query = torch.randn(count * new, shape.q_heads, shape.head_dim, device=device).to(shape.dtype)
    table = torch.randperm(count * pages_each, device=device).int().view(count, -1)
    bounds = torch.arange(0, count * new + 1, new, dtype=torch.int32, device=device)
    lens = torch.full((count,), context, dtype=torch.int32, device=device)
    options = {"scale": shape.head_dim**-0.5, "out": torch.empty_like(query)}
    return (query, keys, values, table, _PAGE, bounds, lens), options


def causal_sdpa(
    bench: Bench, shape: Shape, count: int, new: int, context: int, l2_bytes: int
) -> Prepared:
    """torch's, on contiguous KV of whole prompts."""
    cost = chunk_cost(shape, count, new, context)
    heads = (shape.q_heads, shape.kv_heads, shape.kv_heads)
    attend = partial(scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    calls = []
    for _ in range(num_sets(cost.moved_bytes, l2_bytes)):
        sizes = [(count, h, new, shape.head_dim) for h in heads]
        tensors = [torch.randn(size, device=bench.device).to(shape.dtype) for size in sizes]
        calls.append(partial(attend, *tensors))
    return Prepared(calls, cost, {"contender": "sdpa", "sets": len(calls)})


def chunk_cost(shape: Shape, count: int, new: int, context: int) -> Cost:
    """Bytes and operations of attention over such chunks."""
    return attention_cost(
        [new] * count, [context] * count, num_q_heads=shape.q_heads,
        num_kv_heads=shape.kv_heads, head_dim=shape.head_dim, element_bytes=shape.dtype.itemsize,
    )  # fmt: skip


def store(bench: Bench, shape: Shape, tokens: int, l2_bytes: int) -> Prepared:
    """New tokens of one layer to scattered slots."""
    cost = store_kv_cost(
        tokens, num_kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        element_bytes=shape.dtype.itemsize,
    )  # fmt: skip
    sets = num_sets(cost.moved_bytes, l2_bytes)
    slots = max(16, sets) * tokens
    size = (slots, shape.kv_heads, shape.head_dim)
    caches = [torch.zeros(size, dtype=shape.dtype, device=bench.device) for _ in range(2)]
    new = torch.randn(sets, 2, tokens, *size[1:], device=bench.device).to(shape.dtype)
    places = torch.randperm(slots, device=bench.device)[: sets * tokens].view(sets, tokens)
    calls = [
        partial(bench.backend.store_kv, *each.unbind(), *caches, place)
        for each, place in zip(new, places, strict=True)
    ]
    return Prepared(calls, cost, {"sets": sets})


def copies(
    bench: Bench, shape: Shape, sizes: Sizes, count: int, num_staged: int, l2_bytes: int
) -> Prepared:
    """Pages of all layers within the pool; the first `num_staged` as if others wrote them."""
    cost = copy_pages_cost(count, _PAGE, **_sizes_of(shape, sizes))
    pool = _pool(bench, shape, sizes)
    sets = min(num_sets(cost.moved_bytes, l2_bytes), sizes.num_pages // (2 * count))
    pages = torch.randperm(sizes.num_pages, device=bench.device)[: sets * 2 * count]
    calls = [
        partial(bench.backend.copy_pages, pool[:, 0], pool[:, 1], pairs, _PAGE, num_staged)
        for pairs in pages.view(sets, count, 2)
    ]
    return Prepared(calls, cost, {"pages": count, "num_staged": num_staged, "sets": sets})


def swap(bench: Bench, shape: Shape, sizes: Sizes, count: int, way: str) -> Prepared:
    """Pages of all layers to the host or back; the link, not the memory, is the limit."""
    from allocators.base import PageCopy
    from harness.engine.device.kv_pool import HostKV, KVPool
    from harness.engine.device.model_shape import ModelShape

    model = ModelShape(
        sizes.num_layers, shape.q_heads, shape.kv_heads, shape.head_dim, 1, 1, 1,
        shape.dtype.itemsize, 1,
    )  # fmt: skip
    pool = KVPool(model, sizes.num_pages, _PAGE, dtype=shape.dtype, device=bench.device)
    host = HostKV(pool, count)
    pages = torch.randperm(sizes.num_pages)[:count].tolist()
    if way == "out":
        call = lambda: host.save(pool, [PageCopy(p, i) for i, p in enumerate(pages)])  # noqa: E731
    else:
        call = lambda: host.restore(pool, [PageCopy(i, p) for i, p in enumerate(pages)])  # noqa: E731
    cost = swap_pages_cost(count, _PAGE, **_sizes_of(shape, sizes))
    return Prepared([call], cost, {"pages": count, "link": "host"}, capture=False)


def _pool(bench: Bench, shape: Shape, sizes: Sizes) -> torch.Tensor:
    size = (sizes.num_layers, 2, sizes.num_pages * _PAGE, shape.kv_heads, shape.head_dim)
    return torch.zeros(size, dtype=shape.dtype, device=bench.device)


def _sizes_of(shape: Shape, sizes: Sizes) -> dict[str, int]:
    return {
        "num_layers": sizes.num_layers,
        "num_kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "element_bytes": shape.dtype.itemsize,
    }

"""Kernels under pytest-benchmark: CPU everywhere, Triton where there is a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.backend import AttentionBackend, load
from kernels.cost import attention_cost, copy_pages_cost, store_kv_cost

Q_HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
SIZES = {"num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


@pytest.fixture(scope="module")
def backend() -> AttentionBackend:
    return load(DEVICE)


def tensors(num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(
        2, num_slots, KV_HEADS, HEAD_DIM, device=DEVICE, dtype=DTYPE
    ).unbind()
    return keys, values


def measure(benchmark: Any, call: Any, moved_bytes: int, flops: int = 0) -> None:
    """Time `call` to completion and note the bandwidth and rate that it reaches."""

    def run() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    run()
    benchmark(run)
    if benchmark.stats:
        median_s = benchmark.stats.stats.median
        benchmark.extra_info["gb_per_s"] = round(moved_bytes / median_s / 1e9, 2)
        benchmark.extra_info["gflop_per_s"] = round(flops / median_s / 1e9, 1)


@pytest.mark.parametrize("page_size", [None, 1, 16, 64], ids=lambda p: f"page{p or '-none'}")
@pytest.mark.parametrize(
    ("batch", "queries", "context"),
    [(8, 1, 512), (32, 1, 2048), (1, 512, 512), (1, 512, 4096)],
    ids=lambda n: str(n),
)
def test_attention(
    benchmark: Any,
    backend: AttentionBackend,
    batch: int,
    queries: int,
    context: int,
    page_size: int | None,
) -> None:
    benchmark.group = f"attention batch {batch} queries {queries} context {context}"
    keys, values = tensors(batch * context)
    query = torch.randn(batch * queries, Q_HEADS, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    out = torch.empty_like(query)
    whole = {"device": DEVICE, "dtype": torch.int32}
    lengths = (
        torch.arange(0, batch * queries + 1, queries, **whole),
        torch.full((batch,), context, **whole),
    )
    options = {"scale": HEAD_DIM**-0.5, "out": out}
    cost = attention_cost(
        [queries] * batch,
        [context] * batch,
        num_q_heads=Q_HEADS,
        element_bytes=DTYPE.itemsize,
        page_size=page_size,
        **SIZES,
    )
    if page_size is None:
        starts = torch.arange(0, batch * context, context, **whole)
        call = lambda: backend.contiguous_attention(  # noqa: E731
            query, keys, values, starts, *lengths, **options
        )
    else:
        table = torch.randperm(batch * context // page_size).to(**whole).view(batch, -1)
        call = lambda: backend.paged_attention(  # noqa: E731
            query, keys, values, table, page_size, *lengths, **options
        )
    measure(benchmark, call, cost.moved_bytes, cost.flops)


@pytest.mark.parametrize("num_tokens", [32, 512])
def test_store_kv(benchmark: Any, backend: AttentionBackend, num_tokens: int) -> None:
    key, value = tensors(num_tokens)
    caches = tensors(65536)
    slots = torch.randperm(65536, device=DEVICE)[:num_tokens]
    cost = store_kv_cost(num_tokens, element_bytes=DTYPE.itemsize, **SIZES)
    measure(benchmark, lambda: backend.store_kv(key, value, *caches, slots), cost.moved_bytes)


@pytest.mark.parametrize("num_copies", [1, 64])
def test_copy_pages(benchmark: Any, backend: AttentionBackend, num_copies: int) -> None:
    num_layers, page_size, num_pages = 8, 16, 512
    pool = torch.zeros(
        num_layers, 2, num_pages * page_size, KV_HEADS, HEAD_DIM, device=DEVICE, dtype=DTYPE
    )
    copies = torch.randperm(num_pages, device=DEVICE)[: 2 * num_copies].view(-1, 2)
    cost = copy_pages_cost(
        num_copies, page_size, num_layers=num_layers, element_bytes=DTYPE.itemsize, **SIZES
    )
    measure(
        benchmark,
        lambda: backend.copy_pages(pool[:, 0], pool[:, 1], copies, page_size),
        cost.moved_bytes,
    )

"""The compiled Triton attention kernels at the sizes of real models, on a GPU."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Batch, Shape, make_batch

from kernels import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LLAMA = Shape(q_heads=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}
UNEVEN = [(1, 5000), *[(1, n) for n in (1, 63, 64, 65, 127, 129, 1000, 0)], (300, 900), (5, 2000)]


def on_gpu(batch: Batch) -> Batch:
    return Batch(*(a.cuda() if isinstance(a, torch.Tensor) else a for a in batch))


def assert_equal_reference(batch: Batch, window: int | None = None, **options: float) -> None:
    """In the reference, keys, values and queries are widened to float32."""
    from kernels import triton_attention

    scale = batch.query.shape[2] ** -0.5
    right = reference.paged_attention(*batch, scale=scale, window=window, **options)
    given = on_gpu(batch)
    tolerance = TOLERANCE[batch.query.dtype]
    ours = triton_attention.paged_attention(
        *given, scale=scale, out=given.outside(), window=window, **options
    )
    torch.testing.assert_close(ours.cpu(), right, rtol=tolerance, atol=tolerance)
    flat = [a.cuda() if isinstance(a, torch.Tensor) else a for a in batch.contiguous()]
    ours = triton_attention.contiguous_attention(
        *flat, scale=scale, out=given.outside(), window=window, **options
    )
    torch.testing.assert_close(ours.cpu(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("page_size", [1, 2, 8, 16, 32, 64, 128, 256])
def test_page_sizes(page_size: int, dtype: torch.dtype) -> None:
    assert_equal_reference(make_batch(UNEVEN, LLAMA._replace(page_size=page_size, dtype=dtype)))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 256])
@pytest.mark.parametrize("heads", [(4, 4), (28, 4), (8, 1)])
def test_head_sizes_and_groups(head_dim: int, heads: tuple[int, int]) -> None:
    assert_equal_reference(make_batch(UNEVEN, Shape(*heads, head_dim, dtype=torch.bfloat16)))


@pytest.mark.parametrize("window", [1, 100, 1024])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_window_and_softcap(window: int, softcap: float | None) -> None:
    batch = make_batch(UNEVEN, LLAMA, window=window)
    assert_equal_reference(batch, window, **({} if softcap is None else {"softcap": softcap}))


@pytest.mark.parametrize("num_seqs", [1, 8, 300])
def test_a_captured_graph_serves_other_lengths(num_seqs: int) -> None:
    """Captured with one length everywhere, replayed with others, empty rows among them."""
    from kernels import triton_attention

    random = torch.Generator().manual_seed(1)
    lens = torch.randint(1, 700, (num_seqs,), generator=random).tolist()
    batch = make_batch([(1, n) for n in lens], LLAMA)
    shorter = [n // (2 + i % 5) if i % 7 else 0 for i, n in enumerate(lens)]
    given = on_gpu(batch)
    out = torch.full_like(given.query, torch.nan)

    def run() -> None:
        triton_attention.paged_attention(*given, scale=0.09, out=out)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for now in (lens, shorter, lens):
        current = torch.tensor(now, dtype=torch.int32)
        given.seq_lens.copy_(current)
        graph.replay()
        right = reference.paged_attention(*batch._replace(seq_lens=current), scale=0.09)
        torch.testing.assert_close(out.cpu(), right, rtol=2e-2, atol=2e-2)


def test_addresses_beyond_two_to_the_31_elements() -> None:
    from kernels import triton_attention

    num_pages = 2**31 // (8 * 128 * 16) + 64
    cache = torch.empty(num_pages * 16, 8, 128, dtype=torch.bfloat16, device="cuda")
    pages = torch.tensor([[num_pages - 1, num_pages - 40, 3]], dtype=torch.int32)
    small = torch.randn(3, 16, 8, 128).to(cache.dtype)
    cache.view(num_pages, 16, 8, 128)[pages[0].long().cuda()] = small.cuda()
    for queries in (1, 20):
        query = torch.randn(queries, 32, 128).to(cache.dtype)
        bounds = torch.tensor([0, queries], dtype=torch.int32)
        lens = torch.tensor([44], dtype=torch.int32)
        order = torch.arange(3, dtype=torch.int32)[None]
        flat = small.flatten(0, 1)
        right = reference.paged_attention(query, flat, flat, order, 16, bounds, lens, scale=0.09)
        given = Batch(query.cuda(), cache, cache, pages.cuda(), 16, bounds.cuda(), lens.cuda())
        ours = triton_attention.paged_attention(*given, scale=0.09)
        torch.testing.assert_close(ours.cpu(), right, rtol=2e-2, atol=2e-2)

"""store_kv and copy_pages of every backend."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from kernels import cpu, reference


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Tensors are made where the kernels run."""
    if request.param != "triton":
        yield {"reference": reference, "cpu": cpu}[request.param]
        return
    from kernels import triton_attention

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield triton_attention


@pytest.mark.parametrize("slots", [[5, 0, -1, 11], [1, 2, 3, 4], [-1, -1, -1, -1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_store_writes_its_slots_only(
    backend: ModuleType, slots: list[int], dtype: torch.dtype
) -> None:
    fused = torch.randn(4, 6, 24)
    key, value = fused[:, 0:3], fused[:, 3:6]
    caches = [torch.full((12, 3, 24), torch.nan, dtype=dtype) for _ in range(2)]
    backend.store_kv(key, value, *caches, torch.tensor(slots))
    for new, cache in zip((key, value), caches, strict=True):
        expected = torch.full((12, 3, 24), torch.nan, dtype=dtype)
        for token, slot in enumerate(slots):
            if slot >= 0:
                expected[slot] = new[token].to(dtype)
        torch.testing.assert_close(cache, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "copies",
    [[(0, 4)], [(0, 1), (1, 2), (2, 0)], [(3, 5), (3, 1), (1, 3)], []],
    ids=["one", "cycle", "fan-out and swap", "none"],
)
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("num_layers", [None, 3])
def test_copies_read_all_before_writing(
    backend: ModuleType, copies: list[tuple[int, int]], page_size: int, num_layers: int | None
) -> None:
    """Against a list of pages, the sources snapshotted first; slots past the last page stay."""
    layers = 1 if num_layers is None else num_layers
    pool = torch.randn(layers, 2, 6 * page_size + 1, 2, 8)
    before = pool.clone()
    caches = pool[0] if num_layers is None else pool.transpose(0, 1)
    backend.copy_pages(
        caches[0], caches[1], torch.tensor(copies, dtype=torch.int64).view(-1, 2), page_size
    )
    for source, destination in copies:
        read = before[:, :, source * page_size : (source + 1) * page_size]
        assert torch.equal(
            pool[:, :, destination * page_size : (destination + 1) * page_size], read
        )
    written = {destination for _, destination in copies}
    for page in set(range(7)) - written:
        kept = slice(page * page_size, (page + 1) * page_size)
        assert torch.equal(pool[:, :, kept], before[:, :, kept])


@pytest.mark.parametrize("num_staged", [1, 2, None])
def test_copies_that_are_not_staged_are_copied_too(
    backend: ModuleType, num_staged: int | None
) -> None:
    pool = torch.randn(2, 2, 6 * 4, 2, 8)
    before = pool.clone().view(2, 2, 6, -1)
    copies = torch.tensor([(1, 5), (0, 1), (0, 4)])
    backend.copy_pages(pool[:, 0], pool[:, 1], copies, 4, num_staged)
    after = pool.view(before.shape)
    assert torch.equal(after, before[:, :, [0, 0, 2, 3, 0, 1]])

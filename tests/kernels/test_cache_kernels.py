"""store_kv and copy_pages of every backend; addresses of all Triton kernels that write KV."""

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


HEADS, HEAD_DIM, PAGE_SIZE = 2, 16, 4
ROW = HEADS * HEAD_DIM
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def beyond_two_to_the_31(layers: int, dtype: torch.dtype) -> torch.Tensor:
    """(layers, 2, slots, heads, head_dim): the last slots of each plane lie more than 2^31 elements
    past its first. 8 GiB of which only the pages in use are ever touched."""
    size = (layers, 2, (2**31 // (PAGE_SIZE * ROW) + 3) * PAGE_SIZE, HEADS, HEAD_DIM)
    return torch.empty(size, dtype=dtype, device=DEVICE)


def last_pages(pool: torch.Tensor, count: int) -> torch.Tensor:
    """(layers, 2, count, a page's elements), a view."""
    tail = pool[:, :, -count * PAGE_SIZE :]
    return tail.view(*pool.shape[:2], count, -1)


def random_rows(*size: int) -> torch.Tensor:
    return torch.randn(size, device=DEVICE).half()


def random_bytes(*size: int) -> torch.Tensor:
    return torch.randint(-128, 127, size, dtype=torch.int8, device=DEVICE)


def test_store_beyond_two_to_the_31_elements() -> None:
    from kernels import triton_attention

    keys, values = beyond_two_to_the_31(1, torch.float16)[0]
    new = random_rows(2, 3, HEADS, HEAD_DIM)
    places = torch.tensor([len(keys) - 1, 2, len(keys) - 5], device=DEVICE)
    triton_attention.store_kv(*new, keys, values, places)
    assert torch.equal(keys[places], new[0])
    assert torch.equal(values[places], new[1])


def test_rope_and_store_beyond_two_to_the_31_elements() -> None:
    """The values are stored as they are, the keys as in a small cache."""
    from kernels.triton_rope import rope_store

    keys, values = beyond_two_to_the_31(1, torch.float16)[0]
    qkv = random_rows(3, (4 + 2 * HEADS) * HEAD_DIM)
    cos_sin = random_rows(3, HEAD_DIM)
    near = torch.arange(3, device=DEVICE)
    small = torch.empty(2, 3, HEADS, HEAD_DIM, dtype=torch.float16, device=DEVICE)
    places = torch.tensor([len(keys) - 1, 2, len(keys) - 5], device=DEVICE)
    for slots, caches in ((near, (small[0], small[1])), (places, (keys, values))):
        rope_store(qkv, cos_sin, qkv.new_empty(3, 4, HEAD_DIM), *caches, slots)
    assert torch.equal(keys[places], small[0])
    assert torch.equal(values[places], small[1])
    assert torch.equal(values[places].flatten(1), qkv[:, -ROW:])


@pytest.mark.parametrize("num_staged", [0, 2])
def test_copies_beyond_two_to_the_31_elements(num_staged: int) -> None:
    """Within the last pages, to the first one, and back from it."""
    from kernels import triton_attention

    pool = beyond_two_to_the_31(2, torch.int8)
    last = pool.shape[2] // PAGE_SIZE - 1
    tail, head = last_pages(pool, 3), last_pages(pool[:, :, : 2 * PAGE_SIZE], 2)
    before = random_bytes(*tail.shape)
    tail.copy_(before)
    head.fill_(1)
    copies = torch.tensor([(last, last - 1), (last - 2, 0), (1, last - 2)], device=DEVICE)
    if num_staged == 0:
        copies = copies[:2]
    triton_attention.copy_pages(pool[:, 0], pool[:, 1], copies, PAGE_SIZE, num_staged)
    assert torch.equal(tail[:, :, 1], before[:, :, 2])
    assert torch.equal(head[:, :, 0], before[:, :, 0])
    if num_staged:
        assert (tail[:, :, 0] == 1).all()


@pytest.mark.parametrize("out", [True, False])
def test_moves_beyond_two_to_the_31_elements(out: bool) -> None:
    from kernels.triton_cache import move_pages

    pool = beyond_two_to_the_31(2, torch.int8)
    other = random_bytes(2, 2, 4 * PAGE_SIZE, HEADS, HEAD_DIM)
    last = pool.shape[2] // PAGE_SIZE - 1
    tail, host = last_pages(pool, 2), last_pages(other, 4)
    if out:
        tail.copy_(random_bytes(*tail.shape))
        moves = torch.tensor([(last, 1), (last - 1, 3)], device=DEVICE)
        move_pages(pool, other, moves, PAGE_SIZE)
    else:
        moves = torch.tensor([(1, last), (3, last - 1)], device=DEVICE)
        move_pages(other, pool, moves, PAGE_SIZE)
    assert torch.equal(tail[:, :, 1], host[:, :, 1])
    assert torch.equal(tail[:, :, 0], host[:, :, 3])

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.engine.kv_pool import KVPool, resolve_copies
from harness.engine.model_shape import model_preset, model_shape
from kernels import reference

COPIES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda c: PageCopy(*c)))


def _one_after_the_other(copies: list[PageCopy]) -> list[int]:
    pages = list(range(8))
    for source, destination in copies:
        pages[destination] = pages[source]
    return pages


@given(COPIES)
def test_resolved_copies_do_at_once_what_copies_do_in_turn(copies: list[PageCopy]) -> None:
    resolved = resolve_copies(copies)
    pages = list(range(8))
    for source, destination in resolved:
        pages[destination] = source
    assert pages == _one_after_the_other(copies)
    assert len({c.destination for c in resolved}) == len(resolved)


@given(COPIES)
def test_the_pool_copies_pages_of_all_layers(copies: list[PageCopy]) -> None:
    shape = model_shape(model_preset("tiny"))
    pool = KVPool(shape, 8, 4, dtype=torch.float32)
    pool.storage.copy_(torch.arange(pool.storage.numel()).view(pool.storage.shape))
    before = pool.storage.clone().view(*pool.storage.shape[:2], 8, 4, -1)
    pool.copy(copies, reference)
    after = pool.storage.view(before.shape)
    assert torch.equal(after, before[:, :, _one_after_the_other(copies)])


def test_bytes_are_what_the_storage_measures() -> None:
    shape = model_shape(model_preset("tiny", dtype="bfloat16"))
    pool = KVPool(shape, 12, 16, dtype=torch.bfloat16)
    assert pool.bytes_per_token == shape.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert pool.kv_bytes == pool.storage.untyped_storage().nbytes() == 12 * 16 * 256
    assert [key.shape for key, _ in pool.caches] == [(192, 2, 16)] * 2


def test_poison_fills_the_pool() -> None:
    pool = KVPool(model_shape(model_preset("tiny")), 2, 4, dtype=torch.float32, poison=True)
    assert pool.storage.isnan().all()

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.engine.device.kv_pool import HostKV, KVPool
from harness.engine.device.model_shape import model_preset, model_shape
from harness.engine.scheduling.step_builder import PageCopies
from kernels import reference

PAGE = st.integers(0, 7)
BATCH = st.dictionaries(PAGE, PAGE).map(lambda d: [PageCopy(s, to) for to, s in d.items()])
BATCHES = st.lists(BATCH, max_size=4)
"""Copies of several allocations, one after the other."""


def _in_turn(batches: list[list[PageCopy]]) -> list[int]:
    pages = list(range(8))
    for batch in batches:
        before = pages.copy()
        for source, destination in batch:
            pages[destination] = before[source]
    return pages


def _resolved(batches: list[list[PageCopy]]) -> tuple[PageCopy, ...]:
    copies = PageCopies()
    for batch in batches:
        copies.add(batch)
    return copies.resolved()


@given(BATCHES)
def test_resolved_copies_do_at_once_what_allocations_do_in_turn(
    batches: list[list[PageCopy]],
) -> None:
    resolved = _resolved(batches)
    assert _in_turn([list(resolved)]) == _in_turn(batches)
    assert len({c.destination for c in resolved}) == len(resolved)


@given(BATCHES)
def test_the_pool_copies_pages_of_all_layers(batches: list[list[PageCopy]]) -> None:
    shape = model_shape(model_preset("tiny"))
    pool = KVPool(shape, 8, 4, dtype=torch.float32)
    pool.storage.copy_(torch.arange(pool.storage.numel()).view(pool.storage.shape))
    before = pool.storage.clone().view(*pool.storage.shape[:2], 8, 4, -1)
    pool.copy(_resolved(batches), reference)
    after = pool.storage.view(before.shape)
    assert torch.equal(after, before[:, :, _in_turn(batches)])


@given(st.permutations(range(8)), st.permutations(range(5)), st.permutations(range(8)))
def test_saved_pages_come_back_wherever_they_are_restored(
    pages: list[int], host_pages: list[int], homes: list[int]
) -> None:
    shape = model_shape(model_preset("tiny"))
    pool = KVPool(shape, 8, 4, dtype=torch.float32)
    pool.storage.copy_(torch.arange(pool.storage.numel()).view(pool.storage.shape))
    before = pool.storage.clone().view(*pool.storage.shape[:2], 8, 4, -1)
    host = HostKV(pool, 5)
    saves = [PageCopy(*pair) for pair in zip(pages, host_pages, strict=False)]
    host.save(pool, saves)
    pool.storage.fill_(float("nan"))
    host.restore(pool, [PageCopy(h, home) for h, home in zip(host_pages, homes, strict=False)])
    after = pool.storage.view(before.shape)
    for page, home in zip(pages[:5], homes, strict=False):
        assert torch.equal(after[:, :, home], before[:, :, page])


def test_bytes_are_what_the_storage_measures() -> None:
    shape = model_shape(model_preset("tiny", dtype="bfloat16"))
    pool = KVPool(shape, 12, 16, dtype=torch.bfloat16)
    assert pool.bytes_per_slot == shape.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert pool.kv_bytes == pool.storage.untyped_storage().nbytes() == 12 * 16 * 256
    assert [key.shape for key, _ in pool.caches] == [(192, 2, 16)] * 2


def test_groups_of_layers_share_the_bytes_of_one_pool() -> None:
    shape = replace(
        model_shape(model_preset("tiny")), num_layers=6, layer_windows=(9, 9, None, 9, 9, None)
    )
    groups = shape.layer_groups
    assert groups == ((9, (0, 1)), (9, (3, 4)), (None, (2, 5)))
    merged = KVPool(shape, 12, 16, dtype=torch.float32)
    pool = KVPool(shape, 3 * 12, 16, dtype=torch.float32, groups=groups)
    assert merged.groups == ((None, (0, 1, 2, 3, 4, 5)),)
    assert pool.kv_bytes == merged.kv_bytes == pool.storage.untyped_storage().nbytes()
    assert pool.group_of == (0, 0, 2, 1, 1, 2)
    starts = [key.data_ptr() for key, _ in pool.caches]
    assert starts[0] == starts[3] == starts[2] != starts[1] == starts[4] == starts[5]


def test_poison_fills_the_pool() -> None:
    pool = KVPool(model_shape(model_preset("tiny")), 2, 4, dtype=torch.float32, poison=True)
    assert pool.storage.isnan().all()

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allocators.base import PageCopy
from harness.engine.device.kv_pool import HostKV, KVPool, staged_first
from harness.engine.device.model_shape import model_preset, model_shape
from harness.engine.scheduling.step_builder import PageCopies
from kernels import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

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
def test_only_sources_that_are_written_are_staged(batches: list[list[PageCopy]]) -> None:
    copies = _resolved(batches)
    ordered, num_staged = staged_first(copies)
    assert sorted(ordered) == sorted(copies)
    written = {copy.destination for copy in copies}
    assert [copy.source in written for copy in ordered] == [
        i < num_staged for i in range(len(copies))
    ]


def _numbered_pool(num_pages: int = 8) -> tuple[KVPool, torch.Tensor]:
    """A pool of which each element is different, and a copy by page."""
    shape = model_shape(model_preset("tiny"))
    pool = KVPool(shape, num_pages, 4, dtype=torch.float32, device=DEVICE)
    pool.storage.copy_(torch.arange(pool.storage.numel()).view(pool.storage.shape))
    return pool, pool.storage.clone().view(*pool.storage.shape[:2], num_pages, 4, -1)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@settings(deadline=None, max_examples=40)
@given(batches=BATCHES)
def test_the_pool_copies_pages_of_all_layers(kernels: str, batches: list[list[PageCopy]]) -> None:
    pool, before = _numbered_pool()
    pool.copy(_resolved(batches), backend.load(pool.storage.device.type, kernels))
    after = pool.storage.view(before.shape)
    assert torch.equal(after, before[:, :, _in_turn(batches)])


def test_copies_without_a_chain_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import triton_cache

    launches: list[bool] = []
    launch = triton_cache._launch_copy

    def count(*args: object, gather: bool) -> None:
        launches.append(gather)
        launch(*args, gather=gather)

    monkeypatch.setattr(triton_cache, "_launch_copy", count)
    pool, _ = _numbered_pool()
    pool.copy([PageCopy(0, 3), PageCopy(0, 4), PageCopy(7, 5)], triton_cache)
    assert launches == [False]
    launches.clear()
    pool.copy([PageCopy(0, 3), PageCopy(3, 4), PageCopy(7, 5)], triton_cache)
    assert launches == [True, False]


@pytest.mark.parametrize("direct", [False, True])
@settings(deadline=None, max_examples=25)
@given(
    pages=st.permutations(range(8)),
    host_pages=st.permutations(range(5)),
    homes=st.permutations(range(8)),
)
def test_saved_pages_come_back_wherever_they_are_restored(
    direct: bool, pages: list[int], host_pages: list[int], homes: list[int]
) -> None:
    pool, before = _numbered_pool()
    host = HostKV(pool, 5, direct=direct)
    saves = [PageCopy(*pair) for pair in zip(pages, host_pages, strict=False)]
    host.save(pool, saves)
    pool.storage.fill_(float("nan"))
    host.restore(pool, [PageCopy(h, home) for h, home in zip(host_pages, homes, strict=False)])
    after = pool.storage.view(before.shape)
    for page, home in zip(pages[:5], homes, strict=False):
        assert torch.equal(after[:, :, home], before[:, :, page])
    assert after.isnan().any(dim=-1).any(dim=-1).all(dim=0).all(dim=0).sum() == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_and_writes_pinned_pages_in_place() -> None:
    pool, before = _numbered_pool(64)
    host = HostKV(pool, 64)
    assert host.direct and host.storage.is_pinned()
    order = torch.randperm(64).tolist()
    host.save(pool, [PageCopy(page, slot) for slot, page in enumerate(order)])
    torch.cuda.synchronize()
    saved = host.storage.view(*before.shape)
    assert torch.equal(saved, before[:, :, order].cpu())
    pool.storage.zero_()
    host.restore(pool, [PageCopy(slot, page) for slot, page in enumerate(order)])
    assert torch.equal(pool.storage.view(before.shape), before)


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

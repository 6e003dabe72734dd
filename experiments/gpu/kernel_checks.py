"""Every kernel against float64 on shuffled pages of poisoned pools: a row a kernel, dtype, page
size and option, with its relative error.

A row fails where the error is above what its dtype rounds to, or where anything is NaN: a slot
that may not be read was read, or an output was not written.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.gpu.child import Task, command_line, conclude, guarded, parser, task
from experiments.gpu.layer_checks import layer_cases
from experiments.gpu.ragged import Heads, Ragged, exact_attention, make_ragged, relative_error
from experiments.gpu.rows import RowLog, read_rows
from kernels.backend import AttentionBackend, load

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Of relative errors in norm: operands are rounded once, weights once, the output once."""

NUM_SHARDS = 4
PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MIXED = [(1, 70), (1, 16), (5, 300), (20, 20), (1, 1), (2, 9), (1, 0), (33, 600), (1, 1000)]
_DECODES = [(1, 100), (1, 1), (1, 33), (1, 0), (1, 513), (1, 4097)]
_TINY_MIXED = [(1, 20), (3, 9), (1, 0), (1, 1)]
_BEYOND_INT32 = 2**31


Check = Callable[[], dict[str, Any]]
"""Gives error_norm and the tolerance for it."""


class Case(NamedTuple):
    """One attention check. first_page: of the pool, to put pages beyond 2**31 elements."""

    name: str
    lens: Sequence[tuple[int, int]]
    heads: Heads
    page_size: int
    dtype: torch.dtype
    options: dict[str, Any]
    first_page: int = 0


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--small", action="store_true", help="short contexts, in this process")
    made.add_argument("--shard", default="", help="K/N: this process does each N-th check from K")
    given = task(made)
    log = given.log()
    checks = all_checks(dry=given.dry, small=given.dry or given.extra.small)
    if given.extra.shard:
        first, count = map(int, given.extra.shard.split("/"))
        run_checks(given, log, checks[first::count])
    elif given.extra.small:
        run_checks(given, log, checks)
    else:
        run_shards(given, log, [name for name, _ in checks])
    if given.dry and not given.extra.shard:
        log.add("bfloat16", "absent", error="Triton's interpreter multiplies bf16 wrongly")
    if not given.extra.shard:
        print(f"{len(log.cases('ok'))} checks passed", flush=True)
    return conclude(log)


def run_shards(given: Task, log: RowLog, names: Sequence[str]) -> None:
    """The checks by several processes at once: most of their time is compilation on the host. A
    check that a process died over has failed."""
    count = 2 if given.dry else NUM_SHARDS
    folders = [given.folder / f"shard_{shard}" for shard in range(count)]
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "experiments.gpu.kernel_checks", "--shard",
                f"{shard}/{count}",
                *command_line(folder, given.key, given.budget.left_s, given.dry),
            ]
        )
        for shard, folder in enumerate(folders)
    ]  # fmt: skip
    statuses = [process.wait() for process in processes]
    for folder in folders:
        for row in read_rows(folder):
            log.take(row)
    for number, name in enumerate(names):
        if not log.has(name):
            log.add(name, "failed", error=f"its process ended with {statuses[number % count]}")


def all_checks(*, dry: bool, small: bool) -> list[tuple[str, Check]]:
    """Every check by its name, in an order that spreads what is compiled over shards."""
    device = torch.device("cpu" if dry else "cuda")
    backend = load(device.type, "triton")
    checks: list[tuple[str, Check]] = [
        (case.name, partial(check_attention, backend, case, device))
        for case in attention_cases(small=small, dry=dry)
    ]
    checks += memory_cases(backend, device, dry=dry)
    dtypes = [dtype for dtype in TOLERANCE if not (dry and dtype == torch.bfloat16)]
    return checks + list(layer_cases(device, dtypes, TOLERANCE, small=small))


def run_checks(given: Task, log: RowLog, checks: Sequence[tuple[str, Check]]) -> None:
    """Those that have no row yet."""
    for name, check in checks:
        if log.is_done(name):
            continue
        if given.budget.left_s < 0:
            log.add(name, "cut")
            continue
        guarded(log, name, _note, log, name, check)


def _note(log: RowLog, name: str, check: Check) -> None:
    values = check()
    passed = values["error_norm"] <= values["tolerance"]  # NaN is not
    if not passed:
        values["error"] = f"error {values['error_norm']:.2g} over {values['tolerance']:g}"
        print(f"failed: {name}: {values['error']}", flush=True)
    log.add(name, "ok" if passed else "failed", **values)


def attention_cases(*, small: bool, dry: bool) -> Iterator[Case]:
    """Every dtype, page size, window, softcap and grouping, not all with all."""
    lens = _TINY_MIXED if small else _MIXED
    heads = Heads(4, 2, 16) if small else Heads()
    dtypes = [torch.float32, torch.float16] if dry else list(TOLERANCE)

    def case(what: str, page: int, dtype: torch.dtype, **more: Any) -> Case:
        named = f"attention, {str(dtype).removeprefix('torch.')}, page {page}, {what}"
        fields = {"lens": lens, "heads": heads, "options": {}, **more}
        return Case(named, page_size=page, dtype=dtype, **fields)

    for dtype in dtypes:
        pages = PAGE_SIZES if dtype == dtypes[-1] else (1, 16, 256)
        yield from (case("mixed", page, dtype) for page in pages)
        yield case("window", 16, dtype, options={"window": 9 if small else 77})
        yield case("softcap", 16, dtype, options={"softcap": 2.5})
        yield case("window and softcap", 4, dtype, options={"window": 17, "softcap": 4.0})
    last = dtypes[-1]
    if not small:
        yield from (case("decodes", page, last, lens=_DECODES) for page in (1, 16))
    for name, shape in (
        ("heads equal", Heads(4, 4, 64)),
        ("group of 3", Heads(3, 1, 24)),
        ("group of 7", Heads(14, 2, 80)),
        ("head dimension 256", Heads(4, 2, 256)),
    ):
        yield case(name, 16, last, heads=shape)
    if not dry and not small:
        first = _BEYOND_INT32 // (heads.kv * heads.dim * 16) + 1
        yield case("beyond 2^31 elements", 16, last, first_page=first)


def check_attention(backend: AttentionBackend, case: Case, device: torch.device) -> dict[str, Any]:
    """The larger error of the kernel with a table and of the one without."""
    window = case.options.get("window")
    batch = make_ragged(
        case.lens, case.heads, case.page_size, case.dtype, device,
        window=window, first_page=case.first_page,
    )  # fmt: skip
    scale = case.heads.dim**-0.5
    exact = exact_attention(batch, scale=scale, **case.options)
    errors = {
        name: _error_of(function, arguments, batch, exact, scale=scale, **case.options)
        for name, function, arguments in (
            ("paged", backend.paged_attention, batch.paged()),
            ("contiguous", backend.contiguous_attention, batch.contiguous()),
        )
    }
    worst = max(errors.values(), key=lambda error: error if error == error else float("inf"))
    return {"error_norm": worst, "tolerance": TOLERANCE[case.dtype], "errors": errors}


def _error_of(
    function: Callable[..., Tensor],
    arguments: Sequence[Any],
    batch: Ragged,
    exact: Tensor,
    **options: Any,
) -> float:
    out = torch.full_like(batch.query, torch.nan)
    return relative_error(function(*arguments, out=out, **options), exact)


def memory_cases(
    backend: AttentionBackend, device: torch.device, *, dry: bool
) -> Iterator[tuple[str, Check]]:
    """What only moves bytes: it must move them exactly."""
    for size in (1, 16) if dry else (1, 16, 64, 256):
        yield f"copy_pages, page {size}", partial(check_copies, backend, device, size)
        for direct in (True, False):
            how = "in place" if direct else "by copies"
            yield f"swap {how}, page {size}", partial(check_swap, device, size, direct)
    yield "store_kv", partial(check_store, backend, device)


def check_copies(backend: AttentionBackend, device: torch.device, page_size: int) -> dict[str, Any]:
    """Chains, cycles and fan-out in all layers at once, all sources read before any destination:
    once with every source staged, once with those that have to be."""
    from allocators.base import PageCopy
    from harness.engine.device.kv_pool import staged_first

    layers, num_pages, width = 3, 40, 2 * 16
    copies = [PageCopy(*p) for p in ((5, 6), (0, 1), (1, 2), (2, 0), (5, 7), (39, 8))]
    errors = []
    for ordered, num_staged in ((copies, None), staged_first(copies)):
        pool = torch.randn(layers, 2, num_pages * page_size, 2, 16, device=device).half()
        before = pool.clone().view(layers, 2, num_pages, page_size, width)
        pairs = torch.tensor(ordered, device=device)
        backend.copy_pages(pool[:, 0], pool[:, 1], pairs, page_size, num_staged)
        expected = before.clone()
        expected[:, :, pairs[:, 1]] = before[:, :, pairs[:, 0]]
        errors.append(_exactly(pool.view_as(expected), expected)["error_norm"])
    return {"error_norm": max(errors), "tolerance": 0.0}


def check_swap(device: torch.device, page_size: int, direct: bool) -> dict[str, Any]:
    """Pages to the host and back to other places of a pool that was overwritten meanwhile.
    direct: by a kernel that reads and writes the host's pages in place."""
    from allocators.base import PageCopy
    from harness.engine.device.kv_pool import HostKV, KVPool
    from harness.engine.device.model_shape import model_preset, model_shape

    shape = model_shape(model_preset("tiny"))
    pool = KVPool(shape, 24, page_size, dtype=torch.float16, device=device)
    pool.storage.normal_()
    before = pool.storage.clone()
    host = HostKV(pool, 12, direct)
    out = [PageCopy(source, source // 2) for source in range(0, 20, 2)]
    back = [PageCopy(place, 23 - place) for _, place in out]
    host.save(pool, out)
    pool.storage.fill_(torch.nan)
    host.restore(pool, back)
    pages = before.view(*before.shape[:2], 24, page_size, *before.shape[3:])
    found = pool.storage.view_as(pages)
    sources = [source for source, _ in out]
    return _exactly(found[:, :, [to for _, to in back]], pages[:, :, sources])


def check_store(backend: AttentionBackend, device: torch.device) -> dict[str, Any]:
    """Slots of new tokens are written, -1 is skipped, and everything else is left alone."""
    fused = torch.randn(6, 10, 64, device=device).half()
    key, value = fused[:, 4:7], fused[:, 7:10]
    caches = [torch.full((50, 3, 64), 7.0, dtype=torch.float16, device=device) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    slots = [5, 0, -1, 49, 17, -1]
    for cache, new in zip(expected, (key, value), strict=True):
        for token, slot in enumerate(slots):
            if slot >= 0:
                cache[slot] = new[token]
    backend.store_kv(key, value, *caches, torch.tensor(slots, device=device))
    return _exactly(torch.stack(caches), torch.stack(expected))


def _exactly(ours: Tensor, expected: Tensor) -> dict[str, Any]:
    return {"error_norm": 0.0 if torch.equal(ours, expected) else 1.0, "tolerance": 0.0}


if __name__ == "__main__":
    sys.exit(main())

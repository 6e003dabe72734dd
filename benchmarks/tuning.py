"""Sweeps tiles, warps, stages, occupancy and splits of the attention kernels on this GPU, beside
the choice of kernels/tuning.py, and prints the best of each shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks.decode_cases import Case, Inputs, Store, cost_of, error_of, make_inputs
from benchmarks.other_kernels import chunk_cost, chunk_inputs
from experiments.gpu.child import guarded
from kernels.tuning import AttentionTuning, DecodeTuning, PrefillTuning, attention_tuning

_TUNED = "as tuned"


class Sizes(NamedTuple):
    """decode: shapes; prefill: (sequences, new tokens, context). The rest: values to try."""

    decode: Sequence[Case]
    prefill: Sequence[tuple[int, int, int]]
    tiles: Sequence[int]
    rows: Sequence[int]
    warps: Sequence[int]
    stages: Sequence[int]
    programs: Sequence[int]
    least_tokens: Sequence[int]
    splits: Sequence[int | None]


GPU = Sizes(
    (Case(64, 4096, 16), Case(64, 4096, 1), Case(1, 4096, 16), Case(256, 1024, 16)),
    ((1, 4096, 4096), (4, 512, 8192)),
    (32, 64, 128), (64, 128), (4, 8), (2, 3, 4), (1, 2, 3, 4), (64, 128, 256), (None, 1),
)  # fmt: skip
DRY = Sizes((Case(2, 32, 16),), ((1, 8, 8),), (16,), (16,), (4,), (2,), (1, 2), (16,), (None, 1))


def run(bench: Any, store: Store, *, dry: bool) -> None:
    """A row a choice and shape; what does not fit the chip is a row that says so."""
    sizes = DRY if dry else GPU
    for case in sizes.decode:
        if case.tokens <= len(store.keys):
            _sweep_decode(bench, store, case, sizes)
    for chunk in sizes.prefill:
        _sweep_prefill(bench, store, chunk, sizes)


def choices(base: AttentionTuning, sizes: Sizes) -> Iterator[tuple[str, AttentionTuning]]:
    """Of decode: what is compiled anew first, then occupancy and splits of the tuned kernel."""
    yield _TUNED, base
    for tile, warps, stages in product(sizes.tiles, sizes.warps, sizes.stages):
        decode = base.decode._replace(tile_n=tile, num_warps=warps, num_stages=stages)
        yield _decode_name(decode), base._replace(decode=decode)
    for programs, least, split in product(sizes.programs, sizes.least_tokens, sizes.splits):
        decode = base.decode._replace(programs_per_processor=programs, least_tokens=least)
        name = f"{_decode_name(decode)}, split {split or 'by grid'}"
        yield name, AttentionTuning(decode, base.prefill, split)


def prefill_choices(base: AttentionTuning, sizes: Sizes) -> Iterator[tuple[str, AttentionTuning]]:
    """Of prefill."""
    yield _TUNED, base
    for rows, tile, warps, stages in product(sizes.rows, sizes.tiles, sizes.warps, sizes.stages):
        name = f"rows {rows}, tile {tile}, warps {warps}, stages {stages}"
        yield name, base._replace(prefill=PrefillTuning(rows, tile, warps, stages))


def _decode_name(decode: DecodeTuning) -> str:
    return (
        f"tile {decode.tile_n}, warps {decode.num_warps}, stages {decode.num_stages}, programs "
        f"{decode.programs_per_processor}, least {decode.least_tokens}"
    )


def _sweep_decode(bench: Any, store: Store, case: Case, sizes: Sizes) -> None:
    inputs = make_inputs(store, case)
    facts = {**case._asdict(), **cost_of(case, store.shape)._asdict()}
    found = []
    for name, tuning in choices(_base(store), sizes):
        title = f"tuning, {case.batch} x {case.context}, page {case.page_size}: {name}"
        calls = [partial(_decode_call, inputs, index, tuning) for index in range(len(inputs.outs))]
        check = partial(_check, inputs, calls[0])
        found.append(_one(bench, title, "tuning_decode", calls, check, name, facts))
    _say_best(f"decode, {case.batch} x {case.context}, page {case.page_size}", found)


def _sweep_prefill(bench: Any, store: Store, chunk: tuple[int, int, int], sizes: Sizes) -> None:
    from kernels.triton_attention import paged_attention

    arguments, options = chunk_inputs(bench.device, store.shape, *chunk)
    facts = dict(zip(("sequences", "new", "context"), chunk, strict=True))
    facts |= chunk_cost(store.shape, *chunk)._asdict()
    found = []
    for name, tuning in prefill_choices(_base(store), sizes):
        title = f"tuning, prefill {chunk[0]} x {chunk[1]} of {chunk[2]}: {name}"
        calls = [partial(paged_attention, *arguments, **options, tuning=tuning)]
        found.append(_one(bench, title, "tuning_prefill", calls, calls[0], name, facts))
    _say_best(f"prefill, {chunk[0]} x {chunk[1]} of {chunk[2]}", found)


def _one(
    bench: Any,
    title: str,
    group: str,
    calls: Sequence[Callable[[], object]],
    check: Callable[[], object],
    choice: str,
    facts: dict[str, Any],
) -> tuple[float, str]:
    """Time of one choice; infinite where it was not measured."""
    if not bench.skips(title):
        guarded(bench.log, title, _measure, bench, title, group, calls, check, choice, facts)
    row = bench.log.get(title)
    return row.get("median_us", float("inf")), choice


def _measure(
    bench: Any,
    title: str,
    group: str,
    calls: Sequence[Callable[[], object]],
    check: Callable[[], object],
    choice: str,
    facts: dict[str, Any],
) -> None:
    try:
        check()
    except Exception as error:
        if "OutOfResources" not in type(error).__name__:
            raise
        bench.log.add(title, "absent", bench=group, error=str(error)[:200], **facts)
        return
    bench.measure(title, group, calls, choice=choice, **facts)


def _decode_call(inputs: Inputs, index: int, tuning: AttentionTuning) -> torch.Tensor:
    from kernels.triton_attention import paged_attention

    return paged_attention(
        inputs.queries[index], inputs.store.keys, inputs.store.values, inputs.tables[index],
        inputs.case.page_size, inputs.query_start_loc, inputs.seq_lens,
        scale=inputs.scale, out=inputs.outs[index], tuning=tuning,
    )  # fmt: skip


def _check(inputs: Inputs, call: Callable[[], torch.Tensor]) -> None:
    error = error_of(call(), inputs)
    if not error <= 2e-2:
        raise RuntimeError(f"relative error {error:.2g}: this choice computes something else")


def _base(store: Store) -> AttentionTuning:
    capability = 80
    if store.keys.is_cuda:
        major, minor = torch.cuda.get_device_capability(store.keys.device)
        capability = 10 * major + minor
    return attention_tuning(store.shape.head_dim, store.shape.dtype, capability)


def _say_best(what: str, found: Sequence[tuple[float, str]]) -> None:
    best_us, best = min(found)
    tuned_us = {choice: us for us, choice in found}[_TUNED]
    print(f"{what}: {best_us:,.1f} us with {best}; {tuned_us:,.1f} us {_TUNED}", flush=True)

"""What was aimed at, and whether the rows of a run say that it was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
Verdict = Literal["met", "missed", "not measured"]

LARGE_KV_BYTES = 10**9
SMALL_KV_BYTES = 50 * 10**6
PEERS = ("flash_attention_3", "flashinfer")
"""Kernels that read pages as ours do; torch's SDPA reads contiguous KV and is a row, no peer."""


class Goal(NamedTuple):
    """measured: the figure that decides, the worst of its cases; cases: how many there were."""

    name: str
    target: str
    measured: str
    verdict: Verdict
    cases: int
    note: str = ""


class _Found(NamedTuple):
    """A figure and what it is of."""

    value: float
    where: str


def goals(kernels: Sequence[Row], engine: Sequence[Row]) -> list[Goal]:
    """Every goal, from the rows of the stages `kernels` and `engine`; what has no row is not
    measured."""
    decode = [r for r in kernels if r.get("bench") == "decode" and r["status"] == "ok"]
    steps = [r for r in engine if r.get("bench") == "decode_steps" and r["status"] == "ok"]
    return [*_bandwidth(decode), *_beside_peers(decode), _indirection(kernels), *_engine(steps)]


def _bandwidth(decode: Sequence[Row]) -> list[Goal]:
    def shares(wanted: Callable[[int], bool]) -> list[_Found]:
        return [
            _Found(row["read_share"], _shape(row))
            for row in decode
            if row["contender"] == "paged"
            and row["kv_bytes"] >= LARGE_KV_BYTES
            and wanted(row["page_size"])
        ]

    what = "decode attention, 1 GB of KV and more"
    share = "of the measured read bandwidth"
    return [
        _at_least(f"{what}, page 16 and above", shares(lambda p: p >= 16), 0.90, share),
        _at_least(f"{what}, page 1", shares(lambda p: p == 1), 0.85, share),
    ]


def _beside_peers(decode: Sequence[Row]) -> list[Goal]:
    best: dict[tuple[int, int, int], Row] = {}
    for row in decode:
        place = _place(row)
        if row["contender"] in PEERS and (
            place not in best or row["median_us"] < best[place]["median_us"]
        ):
            best[place] = row
    large, small = [], []
    for row in decode:
        peer = best.get(_place(row))
        if row["contender"] != "paged" or peer is None:
            continue
        where = f"{_shape(row)} beside {peer['contender']}"
        if row["kv_bytes"] >= LARGE_KV_BYTES:
            large.append(_Found(peer["median_us"] / row["median_us"], where))
        if row["kv_bytes"] < SMALL_KV_BYTES:
            small.append(_Found(row["median_us"] / peer["median_us"], where))
    absent = "" if best else f"none of {' and '.join(PEERS)} could be imported"
    speed, time = "x the speed of the best peer", "x the time of the best peer"
    return [
        _at_least("decode attention, 1 GB of KV and more", large, 0.97, speed, absent),
        _at_most("decode attention, below 50 MB of KV", small, 1.15, time, absent),
    ]


def _indirection(kernels: Sequence[Row]) -> Goal:
    """Paged over the same kernel without a table."""
    rows = [
        row for row in kernels if row.get("bench") in ("decode", "pages") and row["status"] == "ok"
    ]
    without = {
        (row["bench"], *_place(row)[:2]): row["median_us"]
        for row in rows
        if row["contender"] == "contiguous"
    }
    found = [
        _Found(100 * (row["median_us"] / without[place] - 1), _shape(row))
        for row in rows
        if row["contender"] == "paged"
        and row["page_size"] >= 16
        and (place := (row["bench"], *_place(row)[:2])) in without
    ]
    return _at_most(
        "paged over our kernel without a table, page 16 and above", found, 2.0, "% more"
    )


def _engine(steps: Sequence[Row]) -> list[Goal]:
    ours = [row for row in steps if row["contender"] == "engine"]
    peers = {(r["batch"], r["context"]): r for r in steps if r["contender"] == "vllm"}
    made = []
    for name, wanted, target in (
        ("64 x 1k", lambda r: (r["batch"], r["context"]) == (64, 1024), 0.80),
        ("64 x 4k", lambda r: (r["batch"], r["context"]) == (64, 4096), 0.87),
        ("batch 256", lambda r: r["batch"] == 256, 0.80),
    ):
        found = [_Found(r["roofline_share"], _steps(r)) for r in ours if wanted(r)]
        made.append(_at_least(f"engine, {name}", found, target, "of its roofline"))
    beside = [
        _Found(row["decode_tokens_per_s"] / peers[place]["decode_tokens_per_s"], _steps(row))
        for row in ours
        if (place := (row["batch"], row["context"])) in peers
    ]
    absent = "" if peers else "vLLM could not be imported"
    made.append(_at_least("engine beside vLLM", beside, 0.90, "x its tokens/s", absent))
    hidden = [
        _Found(100 * (row["step_ms"] / row["device_ms"] - 1), _steps(row))
        for row in ours
        if row.get("overlap") and row.get("device_ms")
    ]
    made.append(_at_most("a step over its device time, overlap on", hidden, 3.0, "% more"))
    return made


def _at_least(
    name: str, found: Iterable[_Found], target: float, unit: str, absent: str = ""
) -> Goal:
    values = list(found)
    wanted = f"at least {target:g} {unit}"
    if not values:
        return Goal(name, wanted, "-", "not measured", 0, absent)
    worst = min(values)
    verdict: Verdict = "met" if worst.value >= target else "missed"
    return Goal(name, wanted, f"{worst.value:.3f}", verdict, len(values), f"least: {worst.where}")


def _at_most(
    name: str, found: Iterable[_Found], target: float, unit: str, absent: str = ""
) -> Goal:
    values = list(found)
    wanted = f"at most {target:g} {unit}"
    if not values:
        return Goal(name, wanted, "-", "not measured", 0, absent)
    worst = max(values)
    verdict: Verdict = "met" if worst.value <= target else "missed"
    return Goal(name, wanted, f"{worst.value:.2f}", verdict, len(values), f"most: {worst.where}")


def _place(row: Row) -> tuple[int, int, int]:
    return row["batch"], row["context"], row["page_size"]


def _shape(row: Row) -> str:
    return f"batch {row['batch']} x {row['context']}, page {row['page_size']}"


def _steps(row: Row) -> str:
    return f"{row['batch']} x {row['context']}"

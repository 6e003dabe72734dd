"""What was aimed at, and whether the rows of a run say that it was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
Verdict = Literal["met", "missed", "incomplete", "not measured"]
"""A figure beyond the target is missed whatever else there is; incomplete: those that there are
reach it, but cases failed or were cut for time."""

LARGE_KV_BYTES = 10**9
SMALL_KV_BYTES = 50 * 10**6
PEERS = ("flash_attention_3", "flashinfer")
"""Kernels that read pages as ours do; torch's SDPA reads contiguous KV and is a row, no peer."""

_MOST_LETTERS = 120


class Goal(NamedTuple):
    """measured: the figure that decides, the worst of its cases; cases: how many there were; lost:
    how many more failed or were cut."""

    name: str
    target: str
    measured: str
    verdict: Verdict
    cases: int
    lost: int = 0
    note: str = ""

    @property
    def counted(self) -> str:
        """How many cases, and how many more were lost."""
        return f"{self.cases} + {self.lost} failed or cut" if self.lost else str(self.cases)


class _Found(NamedTuple):
    """A figure and what it is of."""

    value: float
    where: str


class _Cases(NamedTuple):
    """found: a figure a case. lost: rows that failed or were cut where a case should be. why: what
    is said where there is neither."""

    found: Sequence[_Found]
    lost: Sequence[Row] = ()
    why: str = ""


def goals(kernels: Sequence[Row], engine: Sequence[Row]) -> list[Goal]:
    """Every goal, from the rows of the stages `kernels` and `engine`; what has no row is not
    measured."""
    decode = [row for row in kernels if row.get("bench") == "decode" and "contender" in row]
    steps = [row for row in engine if row.get("bench") == "decode_steps" and "contender" in row]
    pages = [row for row in kernels if row.get("bench") == "pages" and "contender" in row]
    indirection = _indirection([*decode, *pages])
    return [*_bandwidth(decode), *_beside_peers(decode), indirection, *_engine(steps)]


def _is_lost(row: Row) -> bool:
    return row["status"] in ("failed", "cut")


def _each(rows: Sequence[Row], figure: Callable[[Row], _Found]) -> _Cases:
    """A case a row."""
    found = [figure(row) for row in rows if row["status"] == "ok"]
    return _Cases(found, list(filter(_is_lost, rows)))


def _bandwidth(decode: Sequence[Row]) -> list[Goal]:
    def shares(wanted: Callable[[int], bool]) -> _Cases:
        rows = [
            row
            for row in decode
            if row["contender"] == "paged"
            and row["status"] != "absent"
            and row["kv_bytes"] >= LARGE_KV_BYTES
            and wanted(row["page_size"])
        ]
        return _each(rows, lambda row: _Found(row["read_share"], _shape(row)))

    what = "decode attention, 1 GB of KV and more"
    share = "of the measured read bandwidth"
    return [
        _at_least(f"{what}, page 16 and above", shares(lambda p: p >= 16), 0.90, share),
        _at_least(f"{what}, page 1", shares(lambda p: p == 1), 0.85, share),
    ]


def _beside_peers(decode: Sequence[Row]) -> list[Goal]:
    """At a place with a peer that is there at all; the quickest of those decides."""
    peers: dict[tuple[int, int, int], list[Row]] = {}
    for row in decode:
        if row["contender"] in PEERS and row["status"] != "absent":
            peers.setdefault(_place(row), []).append(row)
    why = _reasons([row for row in decode if row["contender"] in PEERS])

    def beside(wanted: Callable[[int], bool], figure: Callable[[Row, Row], float]) -> _Cases:
        found, lost = [], []
        for row in decode:
            theirs = peers.get(_place(row), []) if row["contender"] == "paged" else []
            if row["status"] == "absent" or not theirs or not wanted(row["kv_bytes"]):
                continue
            lost += list(filter(_is_lost, [row, *theirs]))
            timed = [peer for peer in theirs if peer["status"] == "ok"]
            if row["status"] == "ok" and timed:
                best = min(timed, key=lambda peer: peer["median_us"])
                where = f"{_shape(row)} beside {best['contender']}"
                found.append(_Found(figure(row, best), where))
        return _Cases(found, lost, why)

    large = beside(lambda b: b >= LARGE_KV_BYTES, lambda a, b: b["median_us"] / a["median_us"])
    small = beside(lambda b: b < SMALL_KV_BYTES, lambda a, b: a["median_us"] / b["median_us"])
    speed, time = "x the speed of the best peer", "x the time of the best peer"
    return [
        _at_least("decode attention, 1 GB of KV and more", large, 0.97, speed),
        _at_most("decode attention, below 50 MB of KV", small, 1.15, time),
    ]


def _indirection(rows: Sequence[Row]) -> Goal:
    """Paged over the same kernel without a table."""
    without = {
        (row["bench"], *_place(row)[:2]): row for row in rows if row["contender"] == "contiguous"
    }
    found, lost = [], []
    for row in rows:
        other = without.get((row["bench"], *_place(row)[:2])) if "batch" in row else None
        if row["contender"] != "paged" or row["page_size"] < 16 or other is None:
            continue
        lost += list(filter(_is_lost, [row, other]))
        if row["status"] == other["status"] == "ok":
            more = 100 * (row["median_us"] / other["median_us"] - 1)
            found.append(_Found(more, _shape(row)))
    name = "paged over our kernel without a table, page 16 and above"
    return _at_most(name, _Cases(found, lost), 2.0, "% more")


def _engine(steps: Sequence[Row]) -> list[Goal]:
    ours = [row for row in steps if row["contender"] == "engine"]
    made = []
    for name, wanted, target in (
        ("64 x 1k", lambda r: (r["batch"], r["context"]) == (64, 1024), 0.80),
        ("64 x 4k", lambda r: (r["batch"], r["context"]) == (64, 4096), 0.87),
        ("batch 256", lambda r: r["batch"] == 256, 0.80),
    ):
        rows = list(filter(wanted, ours))
        cases = _each(rows, lambda row: _Found(row["roofline_share"], _steps(row)))
        made.append(_at_least(f"engine, {name}", cases, target, "of its roofline"))
    made.append(_beside_vllm(ours, [row for row in steps if row["contender"] == "vllm"]))
    hidden = [
        row
        for row in ours
        if _is_lost(row) or (row.get("overlap") and row.get("device_ms") and row["status"] == "ok")
    ]
    over = _each(
        hidden, lambda row: _Found(100 * (row["step_ms"] / row["device_ms"] - 1), _steps(row))
    )
    made.append(_at_most("a step over its device time, overlap on", over, 3.0, "% more"))
    return made


def _beside_vllm(ours: Sequence[Row], theirs: Sequence[Row]) -> Goal:
    peers = {(r["batch"], r["context"]): r for r in theirs if r["status"] != "absent"}
    found, lost = [], []
    for row in ours:
        peer = peers.get((row["batch"], row["context"]))
        if peer is None:
            continue
        lost += list(filter(_is_lost, [row, peer]))
        if row["status"] == peer["status"] == "ok":
            ratio = row["decode_tokens_per_s"] / peer["decode_tokens_per_s"]
            found.append(_Found(ratio, _steps(row)))
    cases = _Cases(found, lost, _reasons(theirs))
    return _at_least("engine beside vLLM", cases, 0.90, "x its tokens/s")


def _at_least(name: str, cases: _Cases, target: float, unit: str) -> Goal:
    worst = min(cases.found, default=None)
    is_reached = worst is not None and worst.value >= target
    figure = "-" if worst is None else f"{worst.value:.3f}"
    note = "" if worst is None else f"least: {worst.where}"
    return _judged(name, f"at least {target:g} {unit}", cases, figure, is_reached, note)


def _at_most(name: str, cases: _Cases, target: float, unit: str) -> Goal:
    worst = max(cases.found, default=None)
    is_reached = worst is not None and worst.value <= target
    figure = "-" if worst is None else f"{worst.value:.2f}"
    note = "" if worst is None else f"most: {worst.where}"
    return _judged(name, f"at most {target:g} {unit}", cases, figure, is_reached, note)


def _judged(
    name: str, wanted: str, cases: _Cases, figure: str, is_reached: bool, note: str
) -> Goal:
    num_found, num_lost = len(cases.found), len(cases.lost)
    verdict: Verdict = "met" if is_reached else "missed"
    if num_lost and (is_reached or not num_found):
        verdict = "incomplete"
    elif not num_found:
        verdict = "not measured"
    lost = _reasons(cases.lost) if num_lost else ""
    notes = [note, lost or ("" if num_found else cases.why)]
    note = "; ".join(filter(None, notes))
    return Goal(name, wanted, figure, verdict, num_found, num_lost, note)


def _reasons(rows: Sequence[Row]) -> str:
    """Contender, status and error of those that are not ok, each once; fit for a table's cell."""
    reasons = []
    for row in rows:
        if row["status"] != "ok":
            error = " ".join(str(row.get("error", "")).replace("|", "/").split())[:_MOST_LETTERS]
            reasons.append(f"{row['contender']} {row['status']}" + (f": {error}" if error else ""))
    return "; ".join(dict.fromkeys(reasons))


def _place(row: Row) -> tuple[int, int, int]:
    return row["batch"], row["context"], row["page_size"]


def _shape(row: Row) -> str:
    return f"batch {row['batch']} x {row['context']}, page {row['page_size']}"


def _steps(row: Row) -> str:
    return f"{row['batch']} x {row['context']}"

"""Metrics of one run, computed from its records. docs/metrics.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.measure.backlog import backlog
from harness.measure.fleet import fleet_metrics, steady_window_of_fleet
from harness.measure.ledger import CLASSES
from harness.measure.pooled import Pooled
from harness.measure.record_files import Columns, TokenTimes, token_times, without_tokens
from harness.measure.statistics import Floats, weighted_mean

Bools = npt.NDArray[np.bool_]

MEMORY_BOUND_SHARE = 0.5
"""A run saturated for less of its time than this, the drain left aside, was not short of memory."""

STEADY_SHARE_OF_PEAK = 0.8

_ROUNDING_S = 1e-7
"""Less than any step: a token's time, added up from gaps, is off the end of its own by less."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What a run's pool was. num_pages: of all layers. bytes_per_token: KV bytes of one token
    over all layers; draft_bytes_per_token: those of a draft model, whose pool has as many
    slots. num_groups: of layers; each token takes a slot in each, and the ledger counts them
    all. num_replicas: of a fleet, each with such a pool."""

    num_pages: int
    page_size: int
    bytes_per_token: int
    draft_bytes_per_token: int = 0
    num_groups: int = 1
    num_replicas: int = 1

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def num_slots(self) -> int:
        return self.num_tokens * self.num_groups

    @property
    def gib(self) -> float:
        """KV of the model and of its draft model, in all replicas."""
        num_bytes = self.num_tokens * (self.bytes_per_token + self.draft_bytes_per_token)
        return self.num_replicas * num_bytes / 2**30


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Bounds that a request must keep to count for goodput; infinity switches one off."""

    ttft_ms: float = math.inf
    tpot_ms: float = math.inf
    normalised_ms: float = math.inf


@dataclass(frozen=True, slots=True)
class Metrics:
    """One run's figures. Times in ms unless named otherwise; shares between 0 and 1."""

    # requests
    num_requests: int
    num_finished: int
    num_refused: int
    num_single_token: int
    prompt_tokens: int
    output_tokens: int
    # time
    duration_s: float
    last_arrival_s: float
    drain_s: float
    busy_share: float
    requests_per_s: float
    output_tokens_per_s: float
    output_tokens_per_s_per_gib: float
    steady_output_tokens_per_s: float
    steady_from_s: float
    steady_to_s: float
    normalised_latency_ms: float
    normalised_latency_p50_ms: float
    normalised_latency_p99_ms: float
    normalised_latency_token_weighted_ms: float
    ttft_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tpot_p50_ms: float
    tpot_p90_ms: float
    tpot_p95_ms: float
    tpot_p99_ms: float
    itl_ms: float
    itl_p50_ms: float
    itl_p90_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    e2e_ms: float
    e2e_p50_ms: float
    e2e_p90_ms: float
    e2e_p95_ms: float
    e2e_p99_ms: float
    queue_delay_ms: float
    queue_delay_p99_ms: float
    goodput_requests_per_s: float
    batched_requests: float
    backlog_growth: float
    queue_grows: bool
    # memory
    pool_pages: int
    pool_tokens: int
    pool_bytes: int
    utilisation: float
    token_share: float
    reserved_share: float
    over_reserved_share: float
    size_class_share: float
    tail_share: float
    cached_share: float
    withheld_share: float
    stranded_share: float
    refused_share: float
    misaligned_share: float
    free_share: float
    dead_window_share: float
    token_of_mapped: float
    idle_slot_s_per_token: float
    sharing_saved: float
    saturated_share: float
    memory_bound: bool
    paper_token_share: float
    paper_reservation_share: float
    paper_internal_share: float
    paper_external_share: float
    # what the strategy did
    prefix_hit_rate: float
    cached_tokens: int
    preemptions: int
    swaps: int
    recomputed_tokens: int
    swapped_bytes: int
    stalled_s: float
    drafted_tokens: int
    accepted_tokens: int
    acceptance_rate: float
    draft_pool_bytes: int
    draft_utilisation: float
    copied_pages: int
    copied_bytes: int
    allocator_us_per_step: float
    broadcast_bytes_per_step: float
    num_steps: int
    # the fleet
    request_imbalance: float
    token_imbalance: float
    busy_imbalance: float


METRIC_NAMES = tuple(field.name for field in fields(Metrics))


def compute_metrics(
    steps: Columns, requests: Columns, pool: PoolFacts, slo: ServiceLevel
) -> Metrics:
    """All metrics of one run. A run without a finished request has NaN where a mean would be."""
    tokens = token_times(requests)
    requests = without_tokens(requests)
    done = requests[requests["status"] == "finished"]
    values: dict[str, float] = {
        "num_requests": len(requests),
        "num_finished": len(done),
        "num_refused": len(requests) - len(done),
        "num_single_token": int((done["output_len"] == 1).sum()),
        "prompt_tokens": int(done["num_prompt_tokens"].sum()),
        "output_tokens": int(done["num_output_tokens"].sum()),
    }
    values |= _throughput(steps, requests, done, pool)
    values |= _latency(done, slo, values["duration_s"])
    values |= _of_tokens(steps, tokens, pool.num_replicas)
    last_arrival_s = float(requests["arrival_s"].max()) if len(requests) else -math.inf
    values |= _memory(steps, pool, values["output_tokens"], last_arrival_s)
    values |= _strategy(steps, done, pool)
    values |= fleet_metrics(steps, requests, pool.num_replicas)
    return Metrics(**values)  # type: ignore[arg-type]


def _throughput(
    steps: Columns, requests: pd.DataFrame, done: pd.DataFrame, pool: PoolFacts
) -> dict[str, float]:
    begin = float(requests["arrival_s"].min()) if len(requests) else 0.0
    end = float(done["finish_s"].max()) if len(done) else math.nan
    duration = end - begin
    last_arrival = float(requests["arrival_s"].max()) - begin if len(requests) else math.nan
    tokens = int(done["num_output_tokens"].sum())
    rate = _ratio(tokens, duration)
    queue = backlog(_column(done, "arrival_s"), _column(done, "finish_s"))
    return {
        "duration_s": duration,
        "last_arrival_s": last_arrival,
        "drain_s": duration - last_arrival,
        "busy_share": _ratio(float(steps["duration_s"].sum()), duration * pool.num_replicas),
        "requests_per_s": _ratio(len(done), duration),
        "output_tokens_per_s": rate,
        "output_tokens_per_s_per_gib": _ratio(rate, pool.gib),
        "batched_requests": weighted_mean(
            _column(steps, "num_running"), _column(steps, "duration_s")
        ),
        "backlog_growth": queue.growth,
        "queue_grows": queue.grows,
    }


def _of_tokens(steps: Columns, tokens: Iterable[TokenTimes], num_replicas: int) -> dict[str, float]:
    """What takes a look at each token: gaps between them, and how many came while it was busy.

    A token is counted by the step that produced it.
    """
    steady_from, steady_to = (
        _steady_window(steps)
        if num_replicas == 1
        else steady_window_of_fleet(steps, STEADY_SHARE_OF_PEAK)
    )
    itl, num_steady = Pooled(), 0
    for some in tokens:
        itl.add(some.gaps_ms)
        times = some.times_s() - _ROUNDING_S
        num_steady += int(((times > steady_from) & (times <= steady_to)).sum())
    percents = (50, 90, 95, 99)
    percentiles = zip(percents, itl.percentiles(percents), strict=True)
    return {
        "itl_ms": itl.mean,
        **{f"itl_p{percent}_ms": value for percent, value in percentiles},
        "steady_output_tokens_per_s": _ratio(num_steady, steady_to - steady_from),
        "steady_from_s": steady_from,
        "steady_to_s": steady_to,
    }


def _steady_window(steps: Columns) -> tuple[float, float]:
    """Longest stretch with at least 0.8 of the peak number of running requests."""
    if not len(steps):
        return math.nan, math.nan
    running = _column(steps, "num_running")
    start = _column(steps, "start_s")
    end = start + _column(steps, "duration_s")
    in_window = np.concatenate(([False], running >= STEADY_SHARE_OF_PEAK * running.max(), [False]))
    edges = np.flatnonzero(np.diff(in_window.astype(np.int8)))
    begins, ends = edges[::2], edges[1::2] - 1
    longest = int(np.argmax(end[ends] - start[begins]))
    return float(start[begins[longest]]), float(end[ends[longest]])


def _latency(done: pd.DataFrame, slo: ServiceLevel, duration_s: float) -> dict[str, float]:
    arrival = _column(done, "arrival_s")
    tokens = _column(done, "output_len")
    ttft = 1e3 * (_column(done, "first_token_s") - arrival)
    e2e = 1e3 * (_column(done, "finish_s") - arrival)
    queue = 1e3 * (_column(done, "first_scheduled_s") - arrival)
    several = tokens > 1
    tpot_each = np.full(len(tokens), 0.0)
    tpot_each[several] = (e2e - ttft)[several] / (tokens[several] - 1)
    normalised = e2e / tokens
    good = (ttft <= slo.ttft_ms) & (tpot_each <= slo.tpot_ms) & (normalised <= slo.normalised_ms)
    return {
        "normalised_latency_ms": _mean(normalised),
        "normalised_latency_p50_ms": _percentile(normalised, 50),
        "normalised_latency_p99_ms": _percentile(normalised, 99),
        "normalised_latency_token_weighted_ms": _ratio(float(e2e.sum()), float(tokens.sum())),
        **_distribution("ttft", ttft),
        **_distribution("tpot", tpot_each[several]),
        **_distribution("e2e", e2e),
        "queue_delay_ms": _mean(queue),
        "queue_delay_p99_ms": _percentile(queue, 99),
        "goodput_requests_per_s": _ratio(int(good.sum()), duration_s),
    }


def _is_memory_bound(steps: Columns, saturated: Bools, last_arrival_s: float) -> bool:
    """At least MEMORY_BOUND_SHARE of the time is saturated until the last request has come and none
    waits any more: the drain after that says nothing of the load."""
    start, duration = _column(steps, "start_s"), _column(steps, "duration_s")
    waits = saturated | (_column(steps, "num_waiting") > 0)
    until_s = max(last_arrival_s, float((start + duration)[waits].max(initial=-math.inf)))
    under_load = duration * (start < until_s)
    share = _ratio(float((under_load * saturated).sum()), float(under_load.sum()))
    return bool(share >= MEMORY_BOUND_SHARE)


def _memory(
    steps: Columns, pool: PoolFacts, output_tokens: float, last_arrival_s: float
) -> dict[str, float]:
    weights = _column(steps, "duration_s")
    slots = pool.num_slots
    share = {name: weighted_mean(_column(steps, name), weights) / slots for name in CLASSES}
    saturated = (steps["refusal"] != "").to_numpy()
    pressed = weights * saturated
    paper = {name: weighted_mean(_column(steps, name), pressed) / slots for name in CLASSES}
    saturated_share = _ratio(float(pressed.sum()), float(weights.sum()))
    mapped = weighted_mean(_column(steps, "mapped_pages"), weights)
    logical = weighted_mean(_column(steps, "logical_pages"), weights)
    idle_slot_s = float(np.dot(slots - _column(steps, "token"), weights))
    return {
        "pool_pages": pool.num_pages,
        "pool_tokens": pool.num_tokens,
        "pool_bytes": pool.num_tokens * pool.bytes_per_token,
        "utilisation": share["token"],
        **{f"{name}_share": value for name, value in share.items()},
        "misaligned_share": weighted_mean(_column(steps, "misaligned"), weights) / slots,
        "dead_window_share": weighted_mean(_column(steps, "dead_window"), weights) / slots,
        "token_of_mapped": _ratio(share["token"] * pool.num_pages * pool.num_groups, mapped),
        "idle_slot_s_per_token": _ratio(idle_slot_s / pool.num_groups, output_tokens),
        "sharing_saved": 1 - _ratio(mapped, logical),
        "saturated_share": saturated_share,
        "memory_bound": _is_memory_bound(steps, saturated, last_arrival_s),
        "paper_token_share": paper["token"],
        "paper_reservation_share": paper["reserved"],
        "paper_internal_share": paper["over_reserved"],
        "paper_external_share": sum(
            paper[name] for name in CLASSES if name not in ("token", "reserved", "over_reserved")
        ),
    }


def _strategy(steps: Columns, done: pd.DataFrame, pool: PoolFacts) -> dict[str, float]:
    copied_pages = int(steps["copied_pages"].sum())
    cached_tokens = int(done["num_cached_tokens"].sum())
    swapped_pages = int(steps["saved_pages"].sum() + steps["restored_pages"].sum())
    drafted = int(done["num_drafted_tokens"].sum())
    accepted = int(done["num_accepted_tokens"].sum())
    page_bytes = pool.page_size * pool.bytes_per_token // pool.num_groups
    draft_tokens = _column(steps, "draft_token") if "draft_token" in steps else np.zeros(0)
    return {
        "prefix_hit_rate": _ratio(cached_tokens, int(done["num_prompt_tokens"].sum())),
        "cached_tokens": cached_tokens,
        "preemptions": int(steps["num_preempted"].sum()),
        "swaps": int(done["num_swaps"].sum()),
        "recomputed_tokens": int(done["recomputed_tokens"].sum()),
        "swapped_bytes": swapped_pages * page_bytes,
        "stalled_s": float(done["stalled_s"].sum()),
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "acceptance_rate": _ratio(accepted, drafted),
        "draft_pool_bytes": pool.num_tokens * pool.draft_bytes_per_token,
        "draft_utilisation": (
            weighted_mean(draft_tokens, _column(steps, "duration_s")) / pool.num_tokens
            if len(draft_tokens)
            else math.nan
        ),
        "copied_pages": copied_pages,
        "copied_bytes": copied_pages * page_bytes,
        "allocator_us_per_step": _mean(_column(steps, "allocator_us")),
        "broadcast_bytes_per_step": _mean(_column(steps, "broadcast_bytes")),
        "num_steps": len(steps),
    }


def _distribution(name: str, values: Floats) -> dict[str, float]:
    return {
        f"{name}_ms": _mean(values),
        **{f"{name}_p{p}_ms": _percentile(values, p) for p in (50, 90, 95, 99)},
    }


def _column(frame: Columns, name: str) -> Floats:
    return frame[name].to_numpy(dtype=np.float64)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _percentile(values: Floats, percent: int) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator and denominator > 0 else math.nan

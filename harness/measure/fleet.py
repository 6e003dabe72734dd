"""What is asked of a fleet's records beside the metrics of all runs. docs/metrics.md has the
formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.measure.record_files import Columns
from harness.measure.statistics import Floats

_ROUNDING_S = 1e-7
"""Less than any step: a replica's step begins where the one before ended, but for rounding."""


def fleet_metrics(steps: Columns, requests: pd.DataFrame, num_replicas: int) -> dict[str, float]:
    """How evenly requests, tokens and time are spread over replicas: the most that one has, over
    the mean of all; 1 for a single engine."""
    if num_replicas == 1:
        return {
            "request_imbalance": 1.0,
            "token_imbalance": 1.0,
            "busy_imbalance": 1.0,
        }
    served = requests["replica"].to_numpy(dtype=np.int64)
    tokens = requests["num_prompt_tokens"] + requests["num_output_tokens"]
    stepped = steps["replica"].to_numpy(dtype=np.int64)
    return {
        "request_imbalance": _imbalance(served, None, num_replicas),
        "token_imbalance": _imbalance(served, tokens.to_numpy(dtype=np.float64), num_replicas),
        "busy_imbalance": _imbalance(stepped, _column(steps, "duration_s"), num_replicas),
    }


def replica_rows(steps: Columns, requests: pd.DataFrame, num_replicas: int) -> pd.DataFrame:
    """A row a replica: what it was sent, what it did, and how long it was at it.

    Tokens and cached tokens are of finished requests, computed ones of all steps, recomputed ones
    among them. busy_s: time in steps; batched_requests, token_slots: means over it.
    """
    served = requests["replica"].to_numpy(dtype=np.int64)
    is_done = (requests["status"] == "finished").to_numpy()
    done = requests[is_done]
    finished = served[is_done]
    stepped = steps["replica"].to_numpy(dtype=np.int64)
    busy_s = _column(steps, "duration_s")

    def of_done(name: str) -> npt.NDArray[np.int64]:
        values = done[name].to_numpy(dtype=np.float64)
        return _sums(finished, values, num_replicas).astype(np.int64)

    def of_steps(name: str, weights: Floats | None = None) -> Floats:
        values = _column(steps, name)
        return _sums(stepped, values if weights is None else values * weights, num_replicas)

    total_busy_s = _sums(stepped, busy_s, num_replicas)
    prompt_tokens, cached_tokens = of_done("num_prompt_tokens"), of_done("num_cached_tokens")
    with np.errstate(divide="ignore", invalid="ignore"):  # a replica that was sent nothing
        return pd.DataFrame(
            {
                "replica": np.arange(num_replicas),
                "num_requests": np.bincount(served, minlength=num_replicas),
                "num_finished": np.bincount(finished, minlength=num_replicas),
                "prompt_tokens": prompt_tokens,
                "output_tokens": of_done("num_output_tokens"),
                "cached_tokens": cached_tokens,
                "prefix_hit_rate": cached_tokens / prompt_tokens,
                "num_steps": np.bincount(stepped, minlength=num_replicas),
                "busy_s": total_busy_s,
                "computed_tokens": (
                    of_steps("num_prefill_tokens") + of_steps("num_decode_tokens")
                ).astype(np.int64),
                "preemptions": of_steps("num_preempted").astype(np.int64),
                "batched_requests": of_steps("num_running", busy_s) / total_busy_s,
                "token_slots": of_steps("token", busy_s) / total_busy_s,
            }
        )


def steady_window_of_fleet(steps: Columns, share_of_peak: float) -> tuple[float, float]:
    """Begin and end of the longest time in which the replicas' steps together run at least
    `share_of_peak` of the largest number of requests that they ever run together.

    The steps of a replica follow one another, those of different ones lie across each other. NaN
    where there are none.
    """
    if not len(steps):
        return math.nan, math.nan
    times, running = _running_together(steps)
    is_in = running >= share_of_peak * running.max()
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_in, [False])).astype(np.int8)))
    begins, ends = times[edges[::2]], times[np.minimum(edges[1::2], len(times) - 1)]
    longest = int(np.argmax(ends - begins))
    return float(begins[longest]), float(ends[longest])


def _running_together(steps: Columns) -> tuple[Floats, Floats]:
    """Times at which the number of running requests changes, and the number from each on."""
    replica = steps["replica"].to_numpy(dtype=np.int64)
    start_s = _column(steps, "start_s")
    order = np.lexsort((start_s, replica))
    replica, start_s = replica[order], start_s[order]
    end_s = start_s + _column(steps, "duration_s")[order]
    running = _column(steps, "num_running")[order]
    follows = np.zeros(len(start_s), dtype=bool)
    follows[1:] = (replica[1:] == replica[:-1]) & (start_s[1:] - end_s[:-1] < _ROUNDING_S)
    before = np.where(follows, np.concatenate(([0.0], running[:-1])), 0.0)
    is_last = np.concatenate((~follows[1:], [True]))
    times = np.concatenate((start_s, end_s[is_last]))
    changes = np.concatenate((running - before, -running[is_last]))
    order = np.argsort(times, kind="stable")
    times, total = times[order], np.cumsum(changes[order])
    is_final = np.concatenate((times[1:] > times[:-1], [True]))  # of several changes at one time
    return times[is_final], total[is_final]


def _imbalance(replica: npt.NDArray[np.int64], weights: Floats | None, count: int) -> float:
    sums = _sums(replica, weights, count)
    mean = float(sums.mean())
    return float(sums.max()) / mean if mean > 0 else math.nan


def _sums(replica: npt.NDArray[np.int64], weights: Floats | None, count: int) -> Floats:
    sums: Floats = np.bincount(replica, weights, minlength=count).astype(np.float64)
    return sums


def _column(frame: Columns, name: str) -> Floats:
    return frame[name].to_numpy(dtype=np.float64)

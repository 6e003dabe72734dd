"""What is logged of a stored run, as frames and numbers: nothing here knows W&B."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.measure.ledger import CLASSES
from harness.measure.statistics import Floats, t_interval
from harness.runs.store import StoredRun
from harness.tracking import keys

_REQUEST_COLUMNS = (
    "request_id",
    "status",
    "arrival_s",
    "num_prompt_tokens",
    "num_output_tokens",
    "num_cached_tokens",
    "num_preemptions",
    "recomputed_tokens",
    "stalled_s",
)
_TIMES = ("repetition", "output_len", "first_scheduled_s", "first_token_s", "finish_s")
_NOT_METRICS = ["repetition", "seed"]


class Series(NamedTuple):
    """A column a series, a row a logged step; every `stride`-th step is logged."""

    frame: pd.DataFrame
    stride: int


def step_series(run: StoredRun, most: int = keys.MAX_STEPS) -> Series:
    """The first repetition's steps (of a fleet, its first replica's), at most `most` of them,
    evenly chosen and not averaged: each row is one step's ledger, whose classes add up to the
    pool."""
    steps = run.first_steps()
    stride = max(1, -(-len(steps) // most))
    chosen = steps.iloc[::stride]
    slots = chosen[list(CLASSES)]
    columns: dict[str, pd.Series] = {keys.STEP: chosen["step"]}
    columns |= {keys.SLOTS[name]: slots[name] for name in CLASSES}
    columns |= _shares(chosen, "", keys.SHARES)
    if "draft_token" in chosen:
        columns |= _shares(chosen, "draft_", keys.DRAFT_SHARES)
    columns |= {key: chosen[name] for name, key in keys.ENGINE.items()}
    columns[keys.TOKENS] = chosen["num_prefill_tokens"] + chosen["num_decode_tokens"]
    columns[keys.SATURATED] = (chosen["refusal"] != "").astype(int)
    return Series(pd.DataFrame(columns), stride)


def request_table(run: StoredRun, most: int = keys.MAX_REQUESTS) -> pd.DataFrame:
    """A row a request of the first repetition with its latencies, at most `most`, evenly chosen."""
    requests = with_latencies(_first_repetition(_requests(run)))
    stride = max(1, -(-len(requests) // most))
    return requests.iloc[::stride][[*_REQUEST_COLUMNS, "queue_ms", *keys.HISTOGRAMS]]


def latencies(run: StoredRun) -> dict[str, Floats]:
    """Latencies in ms of the finished requests of all repetitions, by histogram."""
    requests = with_latencies(_requests(run))
    done = requests[requests["status"] == "finished"]
    values = {key: done[name].to_numpy(np.float64) for name, key in keys.HISTOGRAMS.items()}
    return {key: each[np.isfinite(each)] for key, each in values.items()}


def histogram(values: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Counts and the edges of NUM_BINS equal bins from the least to the greatest value; values that
    differ by rounding alone have a narrow range around them."""
    low, high = float(values.min()), float(values.max())
    least = max(abs(high), 1.0) * 1e-6
    if high - low < least:
        low, high = low - least, high + least
    counts, edges = np.histogram(values, bins=keys.NUM_BINS, range=(low, high))
    return counts, edges


def with_latencies(requests: pd.DataFrame) -> pd.DataFrame:
    """`requests` with queue delay, TTFT, TPOT, normalised latency and E2E in ms, from the scheduled
    arrival (docs/metrics.md). One output token has no TPOT."""
    arrival, tokens = requests["arrival_s"], requests["output_len"]
    ttft = 1e3 * (requests["first_token_s"] - arrival)
    e2e = 1e3 * (requests["finish_s"] - arrival)
    return requests.assign(
        queue_ms=1e3 * (requests["first_scheduled_s"] - arrival),
        ttft_ms=ttft,
        tpot_ms=(e2e - ttft) / (tokens - 1).where(tokens > 1),
        normalised_ms=e2e / tokens.where(tokens > 0),
        e2e_ms=e2e,
    )


def summary(run: StoredRun) -> dict[str, Any]:
    """Each metric's mean over the repetitions that have it, with interval and count where these
    say something; a text is the first repetition's. A metric that no repetition has is left out."""
    rows = pd.DataFrame(run.summary)
    values: dict[str, Any] = {}
    for name in rows.columns.difference(_NOT_METRICS, sort=False):
        column = rows[name].dropna()
        if len(column) and not pd.api.types.is_numeric_dtype(column.infer_objects()):
            values[name] = column.iloc[0]
            continue
        interval = t_interval(column.to_numpy(np.float64))
        if interval.n:
            values[name] = interval.mean
        if math.isfinite(interval.half_width):
            values[keys.HALF_WIDTH + name] = interval.half_width
        if 0 < interval.n < len(rows):
            values[keys.COUNTED + name] = interval.n
    return values


def _shares(steps: pd.DataFrame, prefix: str, names: Any) -> dict[str, pd.Series]:
    slots = steps[[prefix + name for name in CLASSES]]
    pool = slots.sum(axis="columns")
    return {names[name]: slots[prefix + name] / pool for name in CLASSES}


def _requests(run: StoredRun) -> pd.DataFrame:
    """Without their tokens, which are most of the file."""
    columns = [*_REQUEST_COLUMNS, *_TIMES]
    return run.frame("requests", columns)


def _first_repetition(frame: pd.DataFrame) -> pd.DataFrame:
    first: pd.DataFrame = frame[frame["repetition"] == frame["repetition"].min()]
    return first

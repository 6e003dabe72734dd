"""Names under which W&B has what is logged; docs/wandb.md lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from harness.measure.ledger import CLASSES
from harness.measure.metrics import METRIC_NAMES

MAX_STEPS = 1000
"""Points of a series; of a longer run every second, third, ... step is logged."""

MAX_REQUESTS = 1000
"""Rows of the table of requests."""

MAX_SUMMARY_ROWS = 10_000
"""Rows of the aggregate's table, one a run."""

NUM_BINS = 64
"""Of a histogram."""

STEP = "step"
"""What all series are drawn over: the engine step, from 0."""

SHARES: Mapping[str, str] = {name: f"ledger_share/{name}" for name in CLASSES}
SLOTS: Mapping[str, str] = {name: f"ledger_slots/{name}" for name in CLASSES}
DRAFT_SHARES: Mapping[str, str] = {name: f"draft_share/{name}" for name in CLASSES}

ENGINE: Mapping[str, str] = {
    "start_s": "engine/time_s",
    "num_running": "engine/running",
    "num_waiting": "engine/waiting",
    "num_prefill_tokens": "engine/prefill_tokens",
    "num_decode_tokens": "engine/decode_tokens",
    "num_preempted": "engine/preempted",
}
"""Columns of a step's record, and their series."""

TOKENS = "engine/tokens"
SATURATED = "engine/saturated"

STEP_GLOBS = ("ledger_share/*", "ledger_slots/*", "draft_share/*", "engine/*")
"""Every series, as W&B is told what they are drawn over."""

SERIES = (*SHARES.values(), *SLOTS.values(), *ENGINE.values(), TOKENS, SATURATED)
"""Series of every run."""

HISTOGRAMS: Mapping[str, str] = {
    "ttft_ms": "latency/ttft_ms",
    "tpot_ms": "latency/tpot_ms",
    "normalised_ms": "latency/normalised_ms",
    "e2e_ms": "latency/e2e_ms",
}
"""Columns of the table of requests that have a histogram, and its name."""

REQUESTS = "requests"
MEMORY = "memory"

HALF_WIDTH = "half_width/"
"""Before a metric's name: the half-width of its mean's 95 % interval, from five repetitions on."""

COUNTED = "n/"
"""Before a metric's name: repetitions that have it, where these are not all."""

RUN_FACTS = ("status", "error", "repetitions", "wall_s", "steps_logged_every", "requests_logged")
SUMMARY = (*METRIC_NAMES, *RUN_FACTS)
"""Names in a run's summary; a metric stands there as its mean over the repetitions."""

SETTING, ENVIRONMENT, STUDY = "setting", "environment", "study"
"""Groups of a W&B run's config, beside those of the run's own config."""

AGGREGATE = "aggregate"
"""Job type of the one run of a sweep that has its results."""

SUMMARY_TABLE, COMPARISON_TABLE, FIGURES = "summary", "comparison", "figures/"
AGGREGATE_FACTS = ("runs_complete", "runs_failed", "runs_missing")
ARTIFACT_TYPE = "results"


class Logged(NamedTuple):
    """A row of the documentation's table."""

    key: str
    what: str


LOGGED = (
    Logged("ledger_share/CLASS", "share of the pool's slots in each ledger class, over steps"),
    Logged("ledger_slots/CLASS", "the same as slots"),
    Logged("draft_share/CLASS", "that of a draft model's pool, where there is one"),
    *(Logged(key, "over steps") for key in (*ENGINE.values(), TOKENS)),
    Logged(SATURATED, "1 where the queue's head was refused memory, over steps"),
    Logged(REQUESTS, "table, a row a request of the first repetition"),
    *(Logged(key, "histogram over all finished requests") for key in HISTOGRAMS.values()),
    Logged(MEMORY, "the recorded memory map as an image; without one, the classes over time"),
    Logged("METRIC", "mean over the repetitions, in the summary, of each of docs/metrics.md"),
    Logged(f"{HALF_WIDTH}METRIC", "half of its 95 % interval, from five repetitions on"),
    Logged(f"{COUNTED}METRIC", "repetitions that have it, where these are not all"),
    *(Logged(key, "in the summary") for key in RUN_FACTS),
)
"""What a stored run's W&B run has."""

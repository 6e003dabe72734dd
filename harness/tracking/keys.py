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
    """A row of docs/wandb.md."""

    key: str
    what: str


_ENGINE_WHAT: Mapping[str, str] = {
    "engine/time_s": "when the step began, in seconds from the run's start",
    "engine/running": "requests that run",
    "engine/waiting": "requests that wait",
    "engine/prefill_tokens": "prompt tokens that the step computes",
    "engine/decode_tokens": "output tokens that the step computes",
    "engine/preempted": "requests that the step preempts",
}

OF_RUNS = (
    Logged("ledger_share/CLASS", "share of the pool's slots in each ledger class"),
    Logged("ledger_slots/CLASS", "the same as slots"),
    Logged("draft_share/CLASS", "the share in a draft model's pool, where there is one"),
    *(Logged(key, _ENGINE_WHAT[key]) for key in ENGINE.values()),
    Logged(TOKENS, "tokens that the step computes, of both kinds"),
    Logged(SATURATED, "1 where the head of the queue was refused memory, else 0"),
    Logged(REQUESTS, "a table, one row a request, with its latencies in ms"),
    *(Logged(key, "histogram of all finished requests, in ms") for key in HISTOGRAMS.values()),
    Logged(MEMORY, "an image: the memory map, or without one the classes over time"),
    Logged("METRIC", "summary: mean over the repetitions of each metric of docs/metrics.md"),
    Logged(f"{HALF_WIDTH}METRIC", "summary: half of its 95 % interval, from five repetitions on"),
    Logged(f"{COUNTED}METRIC", "summary: repetitions that have it, where these are not all"),
    Logged("status", "summary: complete, failed or out_of_memory"),
    Logged("error", "summary: what a run died of"),
    Logged("repetitions", "summary: how many"),
    Logged("wall_s", "summary: what the run took, in seconds"),
    Logged("steps_logged_every", "summary: every so many-th step is a point of the series"),
    Logged("requests_logged", "summary: rows of the table of requests"),
)
"""What the W&B run of a stored run has."""

OF_SWEEPS = (
    Logged(SUMMARY_TABLE, "a table, one row a run: settings, and the means with their intervals"),
    Logged(COMPARISON_TABLE, "comparison.csv as a table"),
    Logged(f"{FIGURES}NAME", "each figure as an image"),
    Logged("runs_complete", "summary: runs that went well"),
    Logged("runs_failed", "summary: runs that failed, or ran out of memory"),
    Logged("runs_missing", "summary: runs that the sweep lacks yet"),
    Logged("EXPERIMENT-STUDY", "the artifact, of type results: rows, comparison, figures, study"),
)
"""What the aggregate run of a sweep has."""

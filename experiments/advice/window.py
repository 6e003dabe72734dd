"""The part of a trace that is simulated, and what kind of load it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.advice.question import Question
from harness.config import ConfigError
from harness.engine.device.model_shape import ModelShape
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.trace_row import ReadContext, TraceRow
from harness.workloads.traces import read_trace

MOST_REQUESTS = 600
MOST_OUTPUT_TOKENS = 90_000
MOST_PROMPT_TOKENS = 3_000_000
"""What one run may have, for some 50 of them to be done within a minute on two cores."""

FEWEST_REQUESTS = 40

SHORTEST_SPAN = 0.5
"""A stretch lasts at least this share of the time that as many requests mostly take: what a single
burst of a second does is no load to size for."""

BURSTY_ABOVE = 1.6
"""Variance over mean of the arrivals in equal spans of time: that of a Poisson process is 1."""

ARRIVALS_A_SPAN = 5
FEWEST_SPANS = 10


@dataclass(frozen=True, slots=True)
class Window:
    """The busiest stretch of a trace.

    start_s, num_requests: where it begins, from the trace's first row, and its length. num_rows:
    of the trace; num_too_long: those that the model cannot read, prompt and output together, or
    whose window they would be in. longest: tokens of the longest of the others. requests_per_s,
    tokens_per_s: of the window; trace_*: of the whole trace. dispersion: of the window's arrivals,
    as `dispersion_of`. has_prefixes: requests share them.
    """

    start_s: float
    num_requests: int
    num_rows: int
    num_too_long: int
    longest: int
    requests_per_s: float
    tokens_per_s: float
    trace_requests_per_s: float
    trace_tokens_per_s: float
    dispersion: float
    has_prefixes: bool

    @property
    def is_bursty(self) -> bool:
        return self.dispersion > BURSTY_ABOVE

    @property
    def is_part(self) -> bool:
        """The trace has requests beyond it that the model can read."""
        return self.num_requests < self.num_rows - self.num_too_long

    @property
    def max_len(self) -> int:
        """Bound on prompt + output below which all requests that are kept lie."""
        return self.longest + 1


def read_rows(question: Question) -> list[TraceRow]:
    """The rows of the trace that can be replayed. Raises ConfigError where it cannot be read, or
    has no times."""
    try:
        rows = read_trace(question.format, question.trace, ReadContext(0, ByteTokenizer(0))).rows
    except ValueError as error:
        raise ConfigError(f"trace={error}") from error
    if any(row.arrival_s is None and row.session is None for row in rows):
        raise ConfigError(
            f"format={question.format} has no arrival times, which advice depends on: use a trace "
            "that has them (azure, mooncake, servegen)"
        )
    if len(rows) < FEWEST_REQUESTS:
        raise ConfigError(
            f"trace={question.trace}: {len(rows)} requests are too few to advise on, at least "
            f"{FEWEST_REQUESTS} are needed"
        )
    return rows


def busiest_window(rows: Sequence[TraceRow], shape: ModelShape, question: Question) -> Window:
    """The contiguous requests that bring most tokens a second, of those that the model can read.

    As many as asked for, else as many as the bounds above allow at the trace's mean lengths. Of a
    trace with sessions, the beginning.
    """
    longest = min(shape.max_positions, int(question.overrides.get("workload.max_len", sys.maxsize)))
    kept = [row for row in rows if row.prompt_len + row.output_len < longest]
    if len(kept) < FEWEST_REQUESTS:
        raise ConfigError(
            f"trace={question.trace}: {len(rows) - len(kept)} of {len(rows)} requests have more "
            f"than the {longest} tokens that model={question.model} reads: choose a "
            "model with a longer context"
        )
    prompts = np.array([row.prompt_len for row in kept])
    outputs = np.array([row.output_len for row in kept])
    arrivals = np.maximum.accumulate([row.arrival_s or 0.0 for row in kept])
    count = min(len(kept), question.requests or _affordable(prompts, outputs))
    has_sessions = any(row.session is not None for row in kept)  # a stretch would cut them
    first = 0 if has_sessions else _busiest(arrivals, prompts + outputs, count)
    inside = slice(first, first + count)
    span_s = float(arrivals[inside][-1] - arrivals[first])
    whole_s = float(arrivals[-1] - arrivals[0])
    if span_s <= 0 or whole_s <= 0:
        raise ConfigError(f"trace={question.trace}: all of its requests arrive at once")
    return Window(
        start_s=float(arrivals[first]) - (rows[0].arrival_s or 0.0),
        num_requests=count,
        num_rows=len(rows),
        num_too_long=len(rows) - len(kept),
        longest=int((prompts + outputs).max()),
        requests_per_s=count / span_s,
        tokens_per_s=float((prompts + outputs)[inside].sum()) / span_s,
        trace_requests_per_s=len(kept) / whole_s,
        trace_tokens_per_s=float((prompts + outputs).sum()) / whole_s,
        dispersion=dispersion_of(arrivals[inside]),
        has_prefixes=any(row.block_ids or row.session is not None for row in kept),
    )


def dispersion_of(arrivals: np.ndarray) -> float:
    """Variance over mean of how many arrive in equal spans of some five arrivals each (the index of
    dispersion; Cox and Lewis, The Statistical Analysis of Series of Events, 1966), which are whole
    ticks of the clock that wrote the times: within a tick all seem to come at once. NaN where ticks
    are too long for ten spans."""
    since = np.asarray(arrivals, dtype=np.float64) - arrivals[0]
    steps = np.diff(np.unique(since))
    steps = steps[steps > _SAME_TIME_S]
    if not len(steps):
        return math.nan
    tick_s = float(steps.min())
    span_s = ARRIVALS_A_SPAN * float(since[-1]) / (len(since) - 1)
    span_s = tick_s * max(1, round(span_s / tick_s))
    num_spans = int((since[-1] + tick_s) // span_s)
    if num_spans < FEWEST_SPANS:
        return math.nan
    counts = np.bincount(((since + tick_s / 2) // span_s).astype(int))[:num_spans]
    return float(counts.var(ddof=1) / counts.mean())


_SAME_TIME_S = 1e-9


def _affordable(prompts: np.ndarray, outputs: np.ndarray) -> int:
    by_output = MOST_OUTPUT_TOKENS / float(outputs.mean())
    by_prompt = MOST_PROMPT_TOKENS / float(prompts.mean())
    return max(FEWEST_REQUESTS, math.floor(min(MOST_REQUESTS, by_output, by_prompt)))


def _busiest(arrivals: np.ndarray, tokens: np.ndarray, count: int) -> int:
    """Index of its first request, which is also the first that arrives at its time: a run begins
    at a time, not at a row."""
    before = np.concatenate(([0], np.cumsum(tokens)))
    starts = np.flatnonzero(np.concatenate(([True], np.diff(arrivals) > 0)))
    starts = starts[starts + count <= len(tokens)]
    spans = np.maximum(arrivals[starts + count - 1] - arrivals[starts], 1e-9)
    typical_s = count * (arrivals[-1] - arrivals[0]) / len(arrivals)
    long_enough = spans >= min(SHORTEST_SPAN * typical_s, spans.max())
    starts, spans = starts[long_enough], spans[long_enough]
    return int(starts[np.argmax((before[starts + count] - before[starts]) / spans)])

"""The metrics that two studies are compared by: unit, direction, and what clock they follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from experiments.table_columns import MEMORY_BLOCK, SERVICE_BLOCK, SIMULATED_BLOCK, Column
from harness.config import ConfigError
from harness.conversion import unknown_name

Clock = Literal["time", "share"]
"""time: a length of time, or so much in a time. share: an average weighted by time, which a machine
that is slower throughout does not change."""

NOISE_FLOOR = {"time": 0.05, "share": 0.01}
"""Relative differences of separate timed sweeps below these are the machine's (docs/compare.md)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a run's summary with the column that tables show it in."""

    column: Column
    clock: Clock

    @property
    def name(self) -> str:
        return self.column.metric

    @property
    def higher_is_better(self) -> bool:
        return self.column.best == "max"

    def shown(self, value: float) -> str:
        """A value in the unit of the column's title."""
        return "-" if math.isnan(value) else f"{self.column.shown(value):,.{self.column.digits}f}"


_GOODPUT = Column("goodput_requests_per_s", "good-\nput", "goodput requests/s", 1.0, 2, "max")
_OF_MAPPED = Column("token_of_mapped", "of\nmapped", "used % of mapped pages", 100.0, best="max")

_COLUMNS = {
    column.metric: column
    for column in (*MEMORY_BLOCK, *SIMULATED_BLOCK, *SERVICE_BLOCK, _GOODPUT, _OF_MAPPED)
}

_SHARES = ("utilisation", "token_of_mapped", "batched_requests", "preemptions")
_RATIOS = ("prefix_hit_rate", "sharing_saved", "acceptance_rate")
_TIMES = (
    "output_tokens_per_s",
    "goodput_requests_per_s",
    "normalised_latency_ms",
    "ttft_ms",
    "tpot_ms",
    "itl_p99_ms",
)
_MORE_SHARES = (
    "paper_token_share",
    "reserved_share",
    "over_reserved_share",
    "size_class_share",
    "tail_share",
    "stranded_share",
    "refused_share",
)
_MORE_TIMES = (
    "output_tokens_per_s_per_gib",
    "steady_output_tokens_per_s",
    "ttft_p99_ms",
    "tpot_p99_ms",
    "allocator_us_per_step",
)

HEADLINE = tuple(
    [Metric(_COLUMNS[name], "share") for name in (*_SHARES, *_RATIOS)]
    + [Metric(_COLUMNS[name], "time") for name in _TIMES]
)
"""Compared unless others are asked for. Counts are exact and need no test: see `counts`."""

METRICS = {
    metric.name: metric
    for metric in (
        *HEADLINE,
        *(Metric(_COLUMNS[name], "share") for name in _MORE_SHARES),
        *(Metric(_COLUMNS[name], "time") for name in _MORE_TIMES),
    )
}
"""All that have a direction, by name."""


def chosen(
    names: Sequence[str], rows: Sequence[pd.DataFrame], *, has_slo: bool
) -> tuple[Metric, ...]:
    """The metrics of these names, or the headline ones that `rows` of all studies have: times
    only where steps take some (in a simulation of constant cost they count steps), goodput only
    where `has_slo`, and preemptions only where there are any.

    Raises ConfigError for a name that is no metric with a direction.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError("--metric " + unknown_name(unknown[0], METRICS, "metric"))
    if names:
        return tuple(METRICS[name] for name in dict.fromkeys(names))
    has_times = not any((each["cost"] == "constant")[_simulated(each)].any() for each in rows)
    return tuple(
        metric
        for metric in HEADLINE
        if all(metric.name in each and _says_something(each[metric.name]) for each in rows)
        and (has_times or metric.clock == "share")
        and (has_slo or metric.name != _GOODPUT.metric)
        and (metric.name != "preemptions" or any(each[metric.name].any() for each in rows))
    )


def _simulated(rows: pd.DataFrame) -> pd.Series:
    return rows["executor"] == "simulated"


def _says_something(values: pd.Series) -> bool:
    return bool(values.notna().any())

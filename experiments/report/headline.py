"""The one metric that a study's runs can speak about."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.report.cells import Cell, Group
from experiments.table_columns import TIMES, UTILISATION, Column


@dataclass(frozen=True, slots=True)
class Headline:
    """The one metric that a group is judged by. unit: of a difference. sign: behind a
    value. says: what a value with its sign is, in a sentence."""

    column: Column
    unit: str
    sign: str
    says: str

    @property
    def higher_is_better(self) -> bool:
        return self.column.best == "max"

    def number(self, value: float) -> str:
        """`value` of the metric as it is shown."""
        return f"{value * self.column.scale:,.{self.column.digits}f}{self.sign}"


_TIMES = {column.metric: column for column in TIMES}

USED = Headline(UTILISATION, "percentage points", " %", "of the pool holds tokens")
THROUGHPUT = Headline(_TIMES["output_tokens_per_s"], "tokens/s", "", "output tokens/s")
LATENCY = Headline(
    _TIMES["normalised_latency_ms"], "ms/token", " ms/token", "of mean normalised latency"
)


def headline_of(group: Group) -> Headline:
    """Used memory where times mean nothing; throughput where all requests are there at once or as
    many at a time as are served; latency where they arrive at a rate of their own."""
    if not group.has_times:
        return USED
    return LATENCY if group.is_open_loop else THROUGHPUT


def mean_of(cell: Cell, headline: Headline) -> float:
    """Of the repetitions of `cell`; NaN where none has the metric."""
    return cell.row.cells[headline.column.metric].mean

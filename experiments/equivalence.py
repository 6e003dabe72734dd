"""Timed runs that decided alike: they did the same work, and should take the same time."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.measure.statistics import (
    EQUIVALENCE_LIMIT,
    MIN_PAIRS_FOR_VERDICT,
    SIGNIFICANCE,
    Interval,
    equivalence_p_value,
    holm,
    t_interval,
)
from harness.runs.jobs import Job


@dataclass(frozen=True, slots=True)
class AlikePair:
    """Two cells of a table. ratio: of the second one's time to the first one's, less 1, over
    repetitions of the same seed. p_value: that they differ by more than the limit, after Holm's
    correction over all pairs of the study."""

    first: str
    second: str
    ratio: Interval
    p_value: float

    @property
    def is_equivalent(self) -> bool:
        return self.p_value < SIGNIFICANCE

    def __str__(self) -> str:
        difference = f"{100 * abs(self.ratio.mean):.1f} %"
        if math.isfinite(self.ratio.half_width):
            difference += f" (± {100 * self.ratio.half_width:.1f})"
        return (
            f"{self.first} and {self.second}: these runs decided alike and should take the same "
            f"time; they differ by {difference}, not shown to be within "
            f"{100 * EQUIVALENCE_LIMIT:.0f} %: the machine was disturbed"
        )


class _Cell(NamedTuple):
    """place: what else must be the same for two cells to take the same time. digests, times: by
    seed."""

    label: str
    place: Hashable
    digests: dict[int, str]
    times: dict[int, float]


def alike_pairs(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[AlikePair]:
    """Of the timed cells of a study that decided alike at all their seeds, six or more, at one page
    size and on one attention path, each beside the first of them.

    rows: as from `collect_rows`, complete. A digest that a run lacks is like no other.
    """
    if "schedule_digest" not in rows:
        return []
    groups: dict[Hashable, list[_Cell]] = {}
    for cell in _cells(rows[rows["executor"] != "simulated"], jobs):
        groups.setdefault((cell.place, tuple(sorted(cell.digests.items()))), []).append(cell)
    pairs = [(cells[0], other) for cells in groups.values() for other in cells[1:]]
    logs = [
        np.log([second.times[seed] / first.times[seed] for seed in first.times])
        for first, second in pairs
    ]
    p_values = holm([equivalence_p_value(log) for log in logs])
    return [
        AlikePair(first.label, second.label, _as_ratio(t_interval(log)), p_value)
        for (first, second), log, p_value in zip(pairs, logs, p_values, strict=True)
    ]


def equivalence_lines(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """What the pairs come to: a line for those that are equivalent, a warning for each other."""
    pairs = alike_pairs(rows, jobs)
    equal = [pair for pair in pairs if pair.is_equivalent]
    lines = [f"WARNING: {pair}" for pair in pairs if not pair.is_equivalent]
    if equal:
        several = "pairs of cells" if len(equal) > 1 else "pair of cells"
        lines.insert(
            0,
            f"{len(equal)} {several} decided alike and took the same time, within "
            f"{100 * EQUIVALENCE_LIMIT:.0f} %",
        )
    return lines


def _cells(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[_Cell]:
    by_id = {job.run_id: job for job in jobs}
    known = rows[rows["schedule_digest"].fillna("") != ""]
    labels = known["run_id"].map(lambda run_id: re.sub(r" · seed \d+", "", by_id[run_id].label))
    cells = []
    for (part, label), runs in known.groupby([known["part"], labels], sort=False):
        config = by_id[runs["run_id"].iloc[0]].config
        place = (
            part, str(config.workload), config.kv.page_size, str(config.attention),
            str(config.model), str(config.device),
        )  # fmt: skip
        if len(runs) >= MIN_PAIRS_FOR_VERDICT and runs["seed"].is_unique:
            digests = dict(zip(runs["seed"], runs["schedule_digest"], strict=True))
            times = dict(zip(runs["seed"], runs["duration_s"].astype(float), strict=True))
            cells.append(_Cell(f"{part}: {label}", place, digests, times))
    return cells


def _as_ratio(log: Interval) -> Interval:
    """Of a mean of logarithms; the interval as wide as its wider side."""
    ratio = math.exp(log.mean)
    return Interval(ratio - 1, ratio * (math.exp(log.half_width) - 1), log.n)

"""What is counted rather than measured: slots of the memory ledger, tokens, preemptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.comparison.matching import Cell
from harness.measure.ledger import CLASSES
from harness.runs.jobs import Job
from harness.runs.store import read_frame

TOTALS = {
    "num_finished": "finished requests",
    "num_refused": "refused requests",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "cached_tokens": "cached tokens",
    "recomputed_tokens": "recomputed tokens",
    "preemptions": "preemptions",
    "swaps": "swaps",
    "copied_pages": "copied pages",
    "accepted_tokens": "accepted drafts",
    "num_steps": "steps",
}
"""Counts of a run's summary, as they are shown; summed over the pairs."""

_SLOTS = (*CLASSES, "dead_window", "logical_tokens")
_DECISIONS = (
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_draft_tokens",
    "num_running",
    "num_waiting",
    "num_preempted",
    "copied_pages",
    "saved_pages",
    "restored_pages",
)


class Count(NamedTuple):
    """A count in a cell, of all pairs together; of a class of the ledger the mean over steps, in
    slots."""

    name: str
    unit: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        return self.after - self.before


class CellCounts(NamedTuple):
    """num_equal: pairs whose every count is the same in every step. num_same_decisions: pairs
    whose steps computed, copied and preempted the same. first_difference: the seed and step of the
    first pair that is not equal, in words. counts: all that are there, equal or not."""

    cell: str
    num_pairs: int
    num_equal: int
    num_same_decisions: int
    first_difference: str
    counts: tuple[Count, ...]

    @property
    def is_equal(self) -> bool:
        return self.num_equal == self.num_pairs

    @property
    def different(self) -> tuple[Count, ...]:
        return tuple(count for count in self.counts if count.difference)


class _Run(NamedTuple):
    """One repetition: counts of its summary, and a row a step."""

    totals: pd.Series
    steps: pd.DataFrame


def count(cell: Cell, before: pd.DataFrame, after: pd.DataFrame) -> CellCounts:
    """Both sides' counts. before, after: rows of the cell's complete runs; a seed that either lacks
    is left out, and of several runs of a seed the last one counts."""
    left, right = _runs(cell.before, before), _runs(cell.after, after)
    seeds = sorted(left.keys() & right.keys())
    num_equal = num_same = 0
    first = ""
    for seed in seeds:
        one, other = left[seed], right[seed]
        num_same += _step_of_difference(one.steps, other.steps, _DECISIONS) is None
        step = _step_of_difference(one.steps, other.steps, (*_DECISIONS, *_SLOTS))
        is_equal = step is None and one.totals.equals(other.totals)
        num_equal += is_equal
        if not is_equal and not first:
            first = f"seed {seed}" + ("" if step is None else f", step {step}")
    found = _counts([left[seed] for seed in seeds], [right[seed] for seed in seeds])
    return CellCounts(cell.name, len(seeds), num_equal, num_same, first, found)


def _runs(jobs: Sequence[Job], rows: pd.DataFrame) -> dict[int, _Run]:
    roots: dict[str, Path] = {job.run_id: job.root for job in jobs}
    found = {}
    if rows.empty:
        return {}
    for run_id, group in rows.groupby("run_id", sort=False):
        columns = ["repetition", *dict.fromkeys((*_DECISIONS, *_SLOTS))]
        steps = read_frame(roots[run_id] / run_id / "steps.parquet", columns)
        by_repetition = dict(list(steps.groupby("repetition")))
        for _, row in group.iterrows():
            totals = row[[name for name in TOTALS if name in row]].astype(float)
            own = by_repetition.get(row["repetition"], steps.iloc[:0])
            found[int(row["seed"])] = _Run(totals, own.reset_index(drop=True))
    return found


def _step_of_difference(
    before: pd.DataFrame, after: pd.DataFrame, columns: Sequence[str]
) -> int | None:
    """The first step in which any of `columns` differs; None where none does."""
    shared = min(len(before), len(after))
    left, right = (each[list(columns)].to_numpy()[:shared] for each in (before, after))
    rows = np.flatnonzero((left != right).any(axis=1))
    if len(rows):
        return int(rows[0])
    return None if len(before) == len(after) else shared


def _counts(before: Sequence[_Run], after: Sequence[_Run]) -> tuple[Count, ...]:
    if not before:
        return ()
    totals = [pd.DataFrame([run.totals for run in side]).sum() for side in (before, after)]
    found = [
        Count(title, "", float(totals[0][name]), float(totals[1][name]))
        for name, title in TOTALS.items()
        if name in totals[0] and name in totals[1]
    ]
    slots = [
        pd.concat([run.steps for run in side])[list(_SLOTS)].mean() for side in (before, after)
    ]
    found += [
        Count(name.replace("_", " "), "slots", float(slots[0][name]), float(slots[1][name]))
        for name in _SLOTS
    ]
    return tuple(each for each in found if each.before or each.after)

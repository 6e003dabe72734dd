"""Averages over a stretch of a run's time, from its steps: what happened before and after a load
was steady is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.exported import refuse_export
from harness.measure.ledger import CLASSES
from harness.measure.statistics import Floats, weighted_mean
from harness.runs.jobs import Job
from harness.runs.store import RunStore

PAPER_VIEW = {
    "token": ("token",),
    "reservation": ("reserved",),
    "internal": ("over_reserved",),
    "external": ("size_class", "tail", "cached", "withheld", "stranded", "refused", "free"),
}
"""The ledger's classes in the four of the PagedAttention paper's Fig. 2 (docs/metrics.md)."""


_NEEDED = ("repetition", "start_s", "duration_s", "num_running", "num_waiting", *CLASSES)


class Window(NamedTuple):
    """Seconds since a run's start."""

    from_s: float
    to_s: float


def overlap_s(steps: pd.DataFrame, window: Window) -> Floats:
    """How long each step lay within `window`."""
    start = steps["start_s"].to_numpy(dtype=float)
    end = start + steps["duration_s"].to_numpy(dtype=float)
    inside: Floats = np.clip(
        np.minimum(end, window.to_s) - np.maximum(start, window.from_s), 0, None
    )
    return inside


def window_means(steps: pd.DataFrame, window: Window) -> dict[str, float]:
    """Means over `window` of one repetition's steps, weighted by their time within it.

    Shares of the pool by the paper's classes (`window_token`, ...), between 0 and 1;
    `window_batched`, requests that run; `window_queued`, the share of the time in which others
    wait; `window_covered`, the share of the window in which steps were run.
    """
    weights = overlap_s(steps, window)
    slots = float(steps[list(CLASSES)].iloc[0].sum())
    means = {
        f"window_{name}": weighted_mean(
            steps[list(classes)].sum(axis="columns").to_numpy(dtype=float), weights
        )
        / slots
        for name, classes in PAPER_VIEW.items()
    }
    running = steps["num_running"].to_numpy(dtype=float)
    waiting = (steps["num_waiting"] > 0).to_numpy(dtype=float)
    return {
        **means,
        "window_batched": weighted_mean(running, weights),
        "window_queued": weighted_mean(waiting, weights),
        "window_covered": float(weights.sum()) / (window.to_s - window.from_s),
    }


def with_window(rows: pd.DataFrame, jobs: Sequence[Job], window: Window) -> pd.DataFrame:
    """`rows` of complete runs with the columns of `window_means`, read from the stored steps.

    They are NaN for a repetition that ended before the window did: its end would be averaged
    over a load that was no longer there.
    """
    roots = {job.run_id: job.root for job in jobs}
    for root in set(roots.values()):
        refuse_export(root)
    found = {run_id: _of_run(roots[run_id] / run_id, window) for run_id in set(rows["run_id"])}
    keys = zip(rows["run_id"], rows["repetition"], strict=True)
    columns = pd.DataFrame([found[run_id][number] for run_id, number in keys], index=rows.index)
    return pd.concat([rows, columns], axis="columns")


@lru_cache(maxsize=1024)
def _of_run(folder: Path, window: Window) -> Mapping[int, Mapping[str, float]]:
    """By repetition. A stored run never changes, and several figures and tables ask for it."""
    run = RunStore(folder.parent).find(folder.name)
    assert run is not None, folder
    found: dict[int, Mapping[str, float]] = {}
    for repetition, steps in run.frame("steps", _NEEDED).groupby("repetition"):
        means = window_means(steps, window)
        last_s = float(steps["start_s"].iloc[-1] + steps["duration_s"].iloc[-1])
        if last_s < window.to_s:
            means = dict.fromkeys(means, math.nan)
        found[int(str(repetition))] = means
    return found

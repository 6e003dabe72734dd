"""Formulas of KV memory beside what simulated runs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.exported import run_in_full
from experiments.kv_arithmetic import Lengths, Strategy
from experiments.plotting import means
from harness.runs.jobs import Job

PAGE_SIZE = 16


class Setting(NamedTuple):
    """What tells the runs of the check apart."""

    model: str
    strategy: Strategy
    limit: int
    pool_tokens: int


def formulas_beside_runs(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Users and waste while the queue was waiting, a row a setting: `users`, `waste` with their
    intervals, and `users_formula`, `waste_formula`. Empty where no run is one that the formulas
    are about."""
    lines = []
    complete = rows[rows["status"] == "complete"]
    for run_id, own in complete.groupby("run_id", sort=False):
        job = next(job for job in jobs if job.run_id == run_id)
        setting = _setting(job, int(own["pool_tokens"].iloc[0]))
        if setting is not None:
            measured = _measured(job)
            lines += [
                {**setting._asdict(), "part": job.part, **line}
                for line in measured.to_dict("records")
            ]
    if not lines:
        return pd.DataFrame()
    keys = ["part", *Setting._fields]
    points = means(pd.DataFrame(lines), keys, ["users", "waste"])
    points = points.sort_values(["model", "strategy", "limit"], ignore_index=True)
    lengths = Lengths.sharegpt()
    arguments = [(row["strategy"], row["limit"], PAGE_SIZE) for _, row in points.iterrows()]
    return points.assign(
        users_formula=[
            lengths.users(*each, pool)
            for each, pool in zip(arguments, points["pool_tokens"], strict=True)
        ],
        waste_formula=[lengths.waste(*each) for each in arguments],
    )


def _setting(job: Job, pool_tokens: int) -> Setting | None:
    """None for a run that the formulas are not about."""
    config = job.config
    names: Mapping[tuple[str, str], Strategy] = {
        ("contiguous", "max"): "max",
        ("contiguous", "oracle"): "oracle",
        ("paged", "none"): "paged",
    }
    strategy = names.get((config.allocator.name, config.allocator.expected))
    workload = config.workload
    is_plain = workload.lengths == "sharegpt" and workload.scale == 1
    if strategy is None or not is_plain or config.kv.page_size != PAGE_SIZE:
        return None
    return Setting(config.model.name, strategy, workload.max_len or 0, pool_tokens)


def _measured(job: Job) -> pd.DataFrame:
    """Running requests and waste of each repetition, over the second half of the time that the
    queue waited for memory: in the first all have just begun."""
    run = run_in_full(job)
    if run is None:
        return pd.DataFrame()
    lines = []
    for _, steps in run.frame("steps").groupby("repetition"):
        waiting = steps[steps["num_waiting"] > 0]
        elapsed = waiting["duration_s"].cumsum()
        late = waiting[elapsed >= elapsed.iloc[-1] / 2] if len(waiting) else waiting
        if late.empty:
            continue
        weights = late["duration_s"].to_numpy()
        held = np.dot(late["mapped_pages"], weights) * job.config.kv.page_size
        lines.append(
            {
                "users": np.dot(late["num_running"], weights) / weights.sum(),
                "waste": 1 - np.dot(late["token"], weights) / held,
            }
        )
    return pd.DataFrame(lines)

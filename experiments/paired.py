"""Runs beside a reference run of the same requests: ratios and differences seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.plotting import means
from harness.conversion import to_mapping
from harness.measure.statistics import (
    MIN_PAIRS_FOR_VERDICT,
    SIGNIFICANCE,
    Interval,
    holm,
    interval_p_value,
    t_interval,
)
from harness.runs.jobs import Job

PLACEMENTS = ("buddy", "first_fit", "best_fit", "paged")

PLACEMENT_LABELS = {
    "buddy": "contiguous, buddy",
    "first_fit": "contiguous, first fit",
    "best_fit": "contiguous, best fit",
    "paged": "paged",
}

PLACEMENT_COLOURS = {
    "buddy": "#D55E00",
    "first_fit": "#E69F00",
    "best_fit": "#009E73",
    "paged": "#0072B2",
}


def with_settings(rows: pd.DataFrame, jobs: Sequence[Job], keys: Mapping[str, str]) -> pd.DataFrame:
    """`rows` with more of their runs' settings: a column for each name in `keys`, with the value
    of that dotted key (`{"burstiness": "workload.burstiness"}`); None for one a run lacks."""
    configs = {job.run_id: to_mapping(job.config) for job in jobs}
    columns = {}
    for name, key in keys.items():
        values = []
        for run_id in rows["run_id"]:
            value: object = configs[run_id]
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            values.append(value)
        columns[name] = values
    return rows.assign(**columns)


def with_placement(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `placement`, one of PLACEMENTS where the strategy is one of theirs."""
    is_contiguous = rows["allocator"] == "contiguous"
    return rows.assign(placement=rows["fit"].where(is_contiguous, rows["allocator"]))


def with_attainment(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `attainment`: requests within the SLO over all that came, refused ones too."""
    good = (rows["goodput_requests_per_s"] * rows["duration_s"]).round()
    return rows.assign(attainment=(good / rows["num_requests"]).fillna(0.0))


def against(
    rows: pd.DataFrame, reference: pd.Series, keys: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """`rows` with METRIC_ratio and METRIC_gain: the metric over, and less, the reference's.

    reference: a mask of `rows`. Compared are runs of the same `keys` and seed, so that both have
    had the same requests; NaN where the reference has none. A ratio to 0 is infinite.
    """
    index = [*keys, "seed"]
    base = rows[reference].groupby(index, dropna=False)[list(metrics)].mean()
    joined = rows.join(base.add_suffix("_base"), on=index)
    for metric in metrics:
        of_base = joined[f"{metric}_base"]
        with np.errstate(divide="ignore", invalid="ignore"):
            joined[f"{metric}_ratio"] = joined[metric] / of_base
        joined[f"{metric}_gain"] = joined[metric] - of_base
    return joined.drop(columns=[f"{metric}_base" for metric in metrics])


def paired_ratio(above: pd.DataFrame, below: pd.DataFrame, metric: str) -> Interval:
    """Mean over seeds of `metric` in `above` over that in `below`, with its 95 % interval.

    Seeds that only one of them has are left out; several rows of a seed are averaged.
    """
    top, bottom = (each.groupby("seed")[metric].mean() for each in (above, below))
    return t_interval((top / bottom).dropna().to_numpy())


def best_at(rows: pd.DataFrame, metric: str, setting: str) -> pd.DataFrame:
    """The rows at the value of `setting` where the mean of `metric` is greatest."""
    if rows.empty:
        return rows
    points = means(rows, [setting], [metric])
    return rows[rows[setting] == points.loc[points[metric].idxmax(), setting]]


def slo_in_words(jobs: Sequence[Job]) -> str:
    """The bounds that goodput is counted under, of all runs that have any."""
    found = {}
    for job in jobs:
        measure = job.config.measure
        bounds = {"TTFT": measure.slo_ttft_ms, "TPOT": measure.slo_tpot_ms}
        said = [f"{name} <= {ms:g} ms" for name, ms in bounds.items() if ms is not None]
        found[", ".join(said)] = None
    return " or ".join(filter(None, found)) or "no bound"


def doubts(family: Sequence[Interval], value: float = 1.0) -> list[str]:
    """For each of a family of intervals what keeps a reader from taking it for other than `value`,
    in words that follow the figure; empty where Holm's correction over the family leaves it
    significant from six seeds on, or it is the same at every seed."""
    tested = [each for each in family if each.n >= MIN_PAIRS_FOR_VERDICT or each.half_width == 0]
    corrected = iter(holm([interval_p_value(each, value) for each in tested]))
    said = []
    for each in family:
        if each not in tested:
            said.append(f" ({each.n} {'seed' if each.n == 1 else 'seeds'}: too few to tell)")
        elif next(corrected) < SIGNIFICANCE:
            said.append("")
        else:
            said.append(f" (not separated from {value:g} by {each.n} seeds)")
    return said


def excludes(interval: Interval, value: float) -> bool:
    """The interval is known and lies wholly on one side of `value`."""
    known = math.isfinite(interval.half_width)
    return known and abs(interval.mean - value) > interval.half_width


def in_words(interval: Interval, digits: int = 2) -> str:
    """Mean ± half-width, or the mean alone where there are too few seeds."""
    shown = f"{interval.mean:.{digits}f}"
    if math.isfinite(interval.half_width):
        shown += f" ± {interval.half_width:.{digits}f}"
    return shown

"""From the steps of real runs to a calibrated cost: a non-negative fit, and its noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from harness.config import AllocatorConfig, ConfigError
from harness.conversion import from_mapping
from harness.engine.cost.calibrated import FEATURES, Calibration, features
from harness.engine.cost.step_work import WorkCounts
from harness.engine.cost.work_log import PREFIX
from harness.measure.statistics import Floats
from harness.runs.jobs import strategy_label
from harness.runs.store import StoredRun

MIN_STEPS_PER_FEATURE = 30
MIN_STEPS_WITH_EVENT = 10
"""What a few steps had would be charged with all else that was special about them."""

EVENTS = ("copies at all", "copied tokens", "moved tokens", "moved pages", "beams")
NOISE_LEVELS = 200
IDLE_GAPS = 3.0
"""A gap so many times the median one in which a request arrived was spent waiting for it."""

_ROUNDS = 5
_HUBER = 1.345
_SIGMAS_PER_MAD = 1.4826


class BusySteps(NamedTuple):
    """values: (steps, FEATURES). interval_s: from a step's start to the next one's. has_prompt:
    some sequence computes several tokens."""

    values: Floats
    interval_s: Floats
    has_prompt: np.ndarray


def busy_steps(run: StoredRun) -> BusySteps:
    """The steps of a run that another one followed at once: host time between steps counts, time
    without anything to do does not. Raises ConfigError for a run that kept no work of its steps."""
    steps, requests = run.frame("steps"), run.frame("requests")
    names = [PREFIX + name for name in WorkCounts._fields]
    if not set(names) <= set(steps.columns):
        raise ConfigError(
            f"run {run.run_id} has no record of its steps' work: run it with measure.step_work=true"
        )
    page_size = run.config["kv"]["page_size"]
    values, intervals, prompts = [], [], []
    for repetition, each in steps.groupby("repetition", sort=False):
        arrivals = requests.loc[requests["repetition"] == repetition, "arrival_s"]
        interval_s, is_busy = _intervals(each, np.sort(arrivals.to_numpy(dtype=float)))
        counts = [WorkCounts(*row) for row in each.loc[is_busy, names].itertuples(index=False)]
        values += [features(count, page_size) for count in counts]
        intervals.append(interval_s[is_busy])
        prompts += [count.num_prompts > 0 for count in counts]
    shape = (len(values), len(FEATURES))
    return BusySteps(
        np.array(values, dtype=float).reshape(shape), np.concatenate(intervals), np.array(prompts)
    )


def _intervals(steps: pd.DataFrame, arrivals: Floats) -> tuple[Floats, np.ndarray]:
    """From each step's start to the next one's, and where no waiting lies between."""
    start = steps["start_s"].to_numpy(dtype=float)
    end = start + steps["duration_s"].to_numpy(dtype=float)
    gap = start[1:] - end[:-1]
    usual = float(np.median(gap)) if len(gap) else 0.0
    arrived = np.searchsorted(arrivals, start[1:], "right") > np.searchsorted(arrivals, end[:-1])
    is_busy = np.append(~(arrived & (gap > IDLE_GAPS * usual)), True)
    return np.append(start[1:], end[-1:] + usual) - start, is_busy


def fit(runs: Sequence[StoredRun], environment: dict[str, Any]) -> Calibration:
    """A calibration from `runs`, all of one model.

    Seconds of FEATURES are not negative (Lawson and Hanson's NNLS), in least squares of relative
    errors, where Huber's weights keep a few disturbed steps from counting for more than others.
    One of EVENTS in fewer than MIN_STEPS_WITH_EVENT steps counts as never seen. Raises
    ConfigError for runs of several models, and for too few steps.
    """
    models = {json.dumps([run.config["model"], run.config["kv"]["dtype"]]) for run in runs}
    if len(models) != 1:
        names = sorted({run.config["model"]["name"] for run in runs})
        raise ConfigError(
            f"{len(runs)} runs of {', '.join(names) or 'no model'}: a calibration is of one model "
            "and kv.dtype, give a folder with runs of that one alone"
        )
    if any(run.config["engine"]["tensor_parallel"] > 1 for run in runs):
        raise ConfigError(
            "engine.tensor_parallel: a calibration is of a whole model on one device, leave "
            "runs of split ones out"
        )
    parts = [busy_steps(run) for run in runs]
    steps = BusySteps(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    num_with = (steps.values > 0).sum(axis=0)
    seen = num_with > np.where(np.isin(FEATURES, EVENTS), MIN_STEPS_WITH_EVENT - 1, 0)
    steps.values[:, ~seen] = 0.0
    needed = MIN_STEPS_PER_FEATURE * int(seen.sum())
    if len(steps.interval_s) < needed:
        raise ConfigError(
            f"{len(steps.interval_s)} busy steps in {len(runs)} runs are too few for a fit of "
            f"{int(seen.sum())} features: it needs {needed}; raise workload.num_requests"
        )
    seconds = _robust_nnls(steps.values, steps.interval_s)
    fitted = steps.values @ seconds
    first = runs[0].config
    return Calibration(
        seconds=dict(zip(FEATURES, seconds.tolist(), strict=True)),
        highest=dict(zip(FEATURES, steps.values.max(axis=0).tolist(), strict=True)),
        decode_noise=_noise(steps.interval_s, fitted, ~steps.has_prompt),
        prompt_noise=_noise(steps.interval_s, fitted, steps.has_prompt),
        model=first["model"],
        kv_dtype=first["kv"]["dtype"],
        page_sizes=sorted({run.config["kv"]["page_size"] for run in runs}),
        allocators=sorted({_strategy(run) for run in runs}),
        workloads=sorted({run.config["workload"]["name"] for run in runs}),
        num_runs=len(runs),
        num_steps=len(steps.interval_s),
        fit_error=float(np.median(np.abs(fitted / steps.interval_s - 1))),
        environment=environment,
    )


def _strategy(run: StoredRun) -> str:
    return strategy_label(from_mapping(AllocatorConfig, run.config["allocator"]))


def _robust_nnls(values: Floats, measured: Floats) -> Floats:
    """Coefficients, none negative, of the columns of `values`."""
    scale = values.max(axis=0)
    scale[scale == 0] = 1.0
    relative = values / scale / measured[:, None]
    weights = np.ones(len(measured))
    solution = np.zeros(values.shape[1])
    for _ in range(_ROUNDS):
        solution = nnls(relative * weights[:, None], weights)[0]
        residual = np.abs(relative @ solution - 1)
        bound = _HUBER * _SIGMAS_PER_MAD * max(float(np.median(residual)), 1e-9)
        weights = np.sqrt(np.minimum(1.0, bound / np.maximum(residual, 1e-12)))
    return np.asarray(solution / scale)


def _noise(measured: Floats, fitted: Floats, chosen: np.ndarray) -> list[float]:
    """Equally likely ratios of measured to fitted time whose mean keeps the time in all; without
    a step of the kind, none: those of the other kind stand in."""
    if not chosen.any():
        chosen = np.ones(len(measured), dtype=bool)
    measured, fitted = measured[chosen], fitted[chosen]
    ratios = np.sort(measured / fitted)
    levels = [float(part.mean()) for part in np.array_split(ratios, NOISE_LEVELS) if len(part)]
    factor = measured.sum() / (fitted.sum() * np.mean(levels))
    return [factor * level for level in levels]

"""The runs behind advice: settings as ordinary runs, done by worker processes and stored."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from rich.console import Console

from experiments.advice.question import BOUNDS, Question
from experiments.advice.setting import KNOBS, Setting
from experiments.advice.window import Window
from harness.compose import Composer
from harness.config import ConfigError, RunConfig
from harness.engine.device.model_shape import ModelShape
from harness.measure.environment import capture_environment
from harness.runs.code_hash import CodeHashes
from harness.runs.display import SweepDisplay
from harness.runs.gpu_memory import simulated_memory_bytes
from harness.runs.interrupted import go_on, resumable, what_is_left
from harness.runs.jobs import Job, make_job
from harness.runs.pool_size import bytes_beside_pool, kv_bytes_per_token
from harness.runs.preflight import Preflight
from harness.runs.store import RunStore, StoredRun
from harness.runs.sweep import run_jobs

Answer = TypeVar("Answer")

PART = "advise"


class AdviceRuns:
    """Settings as jobs, and as rows once they are stored. Used within `hydra_session`."""

    def __init__(self, question: Question, window: Window, shape: ModelShape, root: Path) -> None:
        self._question = question
        self._window = window
        self._shape = shape
        self.root = root
        self._composer = Composer()
        self._hashes = CodeHashes()
        self._configs: dict[Setting, RunConfig] = {}
        self.jobs: dict[Setting, Job] = {}

    def words(self, setting: Setting) -> list[str]:
        """The `key=value` words that describe a setting's run to `python -m harness`."""
        question, window = self._question, self._window
        values: dict[str, Any] = {
            "executor": "simulated",
            "executor.cost": "roofline",
            "executor.gpu": question.gpu,
            "executor.host_us": f"{setting.host_us:g}",
            "model": question.model,
            "kv.memory_fraction": f"{setting.memory_fraction:g}",
            "workload": "trace",
            "workload.format": question.format,
            "workload.path": _quoted(str(question.trace)),
            "workload.length_scale": 1,
            "workload.max_len": window.max_len,
            "workload.start_s": 0 if setting.whole else repr(window.start_s),
            "workload.num_requests": "null" if setting.whole else window.num_requests,
            "workload.speed_up": f"{setting.load:g}",
            **{f"measure.slo_{name}": f"{bound:g}" for name, bound in question.slo.items()},
            **{key: getattr(setting, name) for name, (key, _) in KNOBS.items()},
        }
        words = [f"{key}={value}" for key, value in values.items()]
        known = set(values)
        own = [f"{k}={v}" for k, v in question.overrides.items() if k not in known]
        replaced = {k: v for k, v in question.overrides.items() if k in known}
        return [
            f"{key}={replaced[key]}" if (key := word.partition("=")[0]) in replaced else word
            for word in words
        ] + own

    def config(self, setting: Setting) -> RunConfig:
        """The typed config of a setting's run."""
        if setting not in self._configs:
            self._configs[setting] = self._composer.run(self.words(setting))
        return self._configs[setting]

    def job(self, setting: Setting) -> Job:
        """A setting's run; the same one whenever it is asked for."""
        if setting not in self.jobs:
            config = self.config(setting)
            self.jobs[setting] = make_job(config, PART, self.root, "simulated", self._hashes)
        return self.jobs[setting]

    def check(self, setting: Setting) -> None:
        """Raise ConfigError for what is known to be wrong before anything runs."""
        Preflight().check(self.config(setting))

    def stored(self, setting: Setting) -> StoredRun | None:
        """A setting's run as stored."""
        return RunStore(self.root).find(self.job(setting).run_id)

    def row(self, setting: Setting) -> dict[str, Any] | None:
        """The metrics of a setting's run; None if it failed."""
        run = self.stored(setting)
        return run.summary[0] if run is not None and run.status == "complete" else None

    def attainment(self, setting: Setting) -> float:
        """Share of all requests that were answered within the SLO; 0 for a run that failed."""
        row = self.row(setting)
        return 0.0 if row is None else attainment(row)

    def worst_stretch(self, setting: Setting) -> tuple[float, float]:
        """Of as many consecutive requests of a setting's run as the window has, those of which
        fewest were answered within the SLO: their share, and when the first of them came."""
        run = self.stored(setting)
        assert run is not None
        done = run.frame("requests").sort_values(["arrival_s", "request_id"])
        slo = {name: self._question.slo.get(name, math.inf) for name in BOUNDS}
        is_good = within(done, slo).to_numpy()
        count = min(self._window.num_requests, len(is_good))
        good = np.concatenate(([0], np.cumsum(is_good)))
        served = good[count:] - good[:-count]
        first = int(np.argmin(served))
        return float(served[first]) / count, float(done["arrival_s"].iloc[first])

    def pool_tokens(self, setting: Setting) -> int:
        """Slots of the pool that a setting's share of the GPU's memory leaves, whole pages."""
        config = self.config(setting)
        left = setting.memory_fraction * _memory_bytes(config)
        left -= bytes_beside_pool(config, self._shape)
        tokens = max(0, int(left // kv_bytes_per_token(config, self._shape)))
        return tokens - tokens % config.kv.page_size

    def fraction_of(self, setting: Setting, pool_tokens: float) -> float:
        """The share of the GPU's memory at which a setting's pool has so many slots, up to
        rounding to the fourth digit, upwards."""
        config = self.config(setting)
        needed = pool_tokens * kv_bytes_per_token(config, self._shape)
        needed += bytes_beside_pool(config, self._shape)
        return round(needed / _memory_bytes(config) + 5e-5, 4)


def attainment(row: Mapping[str, Any]) -> float:
    """Share of all requests, refused ones too, that were answered within the SLO."""
    good = row["goodput_requests_per_s"] * row["duration_s"]
    return round(good) / row["num_requests"] if good == good else 0.0


def within(requests: pd.DataFrame, slo: Mapping[str, float]) -> pd.Series:
    """Whether each of a run's requests was answered within the bounds, as goodput counts them."""
    ttft_ms = 1e3 * (requests["first_token_s"] - requests["arrival_s"])
    e2e_ms = 1e3 * (requests["finish_s"] - requests["arrival_s"])
    tokens = requests["output_len"].clip(lower=1)
    tpot_ms = (e2e_ms - ttft_ms) / (tokens - 1).where(tokens > 1, np.inf)
    return (
        (requests["status"] == "finished")
        & (ttft_ms <= slo["ttft_ms"])
        & (tpot_ms <= slo["tpot_ms"])
        & (e2e_ms / tokens <= slo["normalised_ms"])
    )


def drive(
    search: Generator[Sequence[Setting], Mapping[Setting, float], Answer],
    runs: AdviceRuns,
    console: Console,
    arguments: Sequence[str] = (),
) -> Answer:
    """Answer what `search` asks, with stored runs where there are any, and else with new ones.
    arguments: of the command, to repeat it."""
    asked = list(next(search))
    result: list[Answer] = []
    given: set[str] = set()

    def is_settled(setting: Setting) -> bool:
        """Stored; a run that failed before is tried once more."""
        run = runs.stored(setting)
        return run is not None and (run.status == "complete" or run.run_id in given)

    def pending() -> list[Job]:
        """The jobs of what is asked next that are not stored; none when the search is over."""
        nonlocal asked
        while not result:
            missing = [runs.job(setting) for setting in asked if not is_settled(setting)]
            if missing:
                return missing
            try:
                asked = list(search.send({s: runs.attainment(s) for s in asked}))
            except StopIteration as stop:
                result.append(stop.value)
        return []

    jobs = pending()
    given.update(job.run_id for job in jobs)
    display = SweepDisplay(console, jobs, jobs, searching=True, lists_runs=False)

    def finished(job: Job, run: StoredRun | None) -> list[Job]:
        display.finished(job, run)
        more = [each for each in pending() if each.run_id not in given]
        given.update(each.run_id for each in more)
        display.add(more)
        return more

    def interrupted() -> str:
        RunStore(runs.root).remove_partial()
        repeated = go_on("experiments advise", arguments)
        return what_is_left(display.num_stored, display.num_left, repeated, at_least=True)

    if jobs:
        with resumable(interrupted), display:
            run_jobs(jobs, capture_environment("none", 1), finished, display.started)
    if not result:
        raise ConfigError("a run was not stored: free space, or choose another results_dir")
    return result[0]


def _memory_bytes(config: RunConfig) -> int:
    memory = simulated_memory_bytes(config)
    assert memory is not None  # every setting names a GPU
    return memory


def _quoted(text: str) -> str:
    """A value in Hydra's syntax, quoted where it has characters that mean something there."""
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "\\'") + "'"

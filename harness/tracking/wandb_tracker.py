"""Weights & Biases: the only import of wandb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from harness.config import TrackingConfig
from harness.measure.ledger import CLASSES
from harness.runs.store import StoredRun

_MAX_LOGGED_STEPS = 2000
_STEP_METRIC = "step"


class WandbTracker:
    """One W&B run for each stored run, grouped by experiment; offline when not logged in.

    Each has the resolved config, the ledger's classes as series over steps (the first
    repetition, thinned to at most 2,000 points), and the metrics' means as its summary.
    """

    def __init__(self, config: TrackingConfig, experiment: str, folder: Path) -> None:
        self._config = config
        self._experiment = experiment
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._mode = "online" if _is_logged_in() else "offline"

    def log_run(self, run: StoredRun, part: str) -> None:
        session = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=self._experiment,
            job_type=part,
            name=run.label,
            id=run.run_id,
            config=run.config,
            dir=str(self._folder),
            mode=self._mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
        session.define_metric(_STEP_METRIC)
        session.define_metric("ledger/*", step_metric=_STEP_METRIC)
        if run.status == "complete":
            self._log_series(session, run)
            means = pd.DataFrame(run.summary).drop(columns=["repetition", "seed"])
            session.summary.update(means.mean(numeric_only=True).to_dict())
            session.summary.update({"status": run.status, "repetitions": len(run.summary)})
        else:
            session.summary.update({"status": run.status, "error": run.error})
        session.finish(exit_code=0 if run.status == "complete" else 1)

    def close(self) -> None:
        return None

    def _log_series(self, session: Any, run: StoredRun) -> None:
        steps = run.frame("steps")
        steps = steps[steps["repetition"] == 0]
        stride = -(-len(steps) // _MAX_LOGGED_STEPS)
        names = [*CLASSES, "num_running", "num_waiting"]
        for row in steps.iloc[::stride].to_dict("records"):
            series = {f"ledger/{name}": row[name] for name in names}
            session.log({_STEP_METRIC: row["step"], **series})


def _is_logged_in() -> bool:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    return bool(wandb.api.api_key)

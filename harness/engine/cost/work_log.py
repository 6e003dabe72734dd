"""Keeps what a run's steps had to do, to be counted when the run is over."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.engine.cost.step_work import WorkCounter, WorkCounts
from harness.engine.executor import Executor, late, works_apart
from harness.engine.plan import StepOutcome, StepPlan

PREFIX = "work_"
"""Of the columns of `WorkLog.frame`, beside a step's other figures."""


class WorkLog:
    """An executor that notes each plan on its way to another: one list entry a step, outside of
    the time that the other measures. Plans stay in memory until the log goes."""

    def __init__(self, executor: Executor, counter: WorkCounter) -> None:
        self._executor = late(executor)
        self._counter = counter
        self._plans: list[StepPlan] = []

    @property
    def works_apart(self) -> bool:
        return works_apart(self._executor)

    def execute(self, plan: StepPlan) -> StepOutcome:
        return self.result(self.submit(plan))

    def submit(self, plan: StepPlan) -> Any:
        self._plans.append(plan)
        return self._executor.submit(plan)

    def result(self, pending: Any) -> StepOutcome:
        return self._executor.result(pending)

    def close(self) -> None:
        self._executor.close()

    def frame(self) -> pd.DataFrame:
        """A row a step: `WorkCounts`, each name after `work_`."""
        counts = [WorkCounts.of(self._counter.count(plan)) for plan in self._plans]
        return pd.DataFrame(counts, columns=[PREFIX + name for name in WorkCounts._fields])

"""The one question that a virtual clock asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from harness.engine.cost.step_work import StepWork, WorkCounter
from harness.engine.plan import StepPlan


class CostModel(Protocol):
    """Says how long the device takes for a step."""

    def step_s(self, plan: StepPlan) -> float:
        """Seconds from one step's begin to the next one's."""
        ...

    @property
    def extrapolated_share(self) -> float:
        """Of the steps so far, those unlike any that the model was fitted to."""
        ...


class ConstantCost:
    """Every step takes the same time."""

    extrapolated_share = 0.0

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def step_s(self, plan: StepPlan) -> float:
        return self._step_s


class WorkCost:
    """A step takes what `work_s` says of its work, and `draft_work_s` of each pass of the draft
    model."""

    extrapolated_share = 0.0

    def __init__(
        self,
        counter: WorkCounter,
        work_s: Callable[[StepWork], float],
        draft_work_s: Callable[[StepWork], float] | None = None,
    ) -> None:
        self._count = counter.count
        self._work_s = work_s
        self._draft_work_s = draft_work_s

    def step_s(self, plan: StepPlan) -> float:
        work = self._count(plan)
        seconds = self._work_s(work)
        if work.draft and self._draft_work_s is not None:
            seconds += sum(map(self._draft_work_s, work.draft))
        return seconds

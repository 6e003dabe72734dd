"""The one question that a virtual clock asks."""

from __future__ import annotations

from typing import Protocol

from harness.engine.plan import StepPlan


class CostModel(Protocol):
    """Says how long the device takes for a step."""

    def step_s(self, plan: StepPlan) -> float:
        """Seconds from one step's begin to the next one's."""
        ...


class ConstantCost:
    """Every step takes the same time."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def step_s(self, plan: StepPlan) -> float:
        return self._step_s

"""The one seam to the device."""

from __future__ import annotations

from typing import Protocol

from harness.engine.plan import StepOutcome, StepPlan


class Executor(Protocol):
    """Carries out step plans. `torch` runs the model; `simulated` asks a cost model."""

    def execute(self, plan: StepPlan) -> StepOutcome:
        """Do what `plan` says and return the chosen tokens and the time it took."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

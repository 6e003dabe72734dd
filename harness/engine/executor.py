"""The one seam to the device."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from harness.engine.plan import StepOutcome, StepPlan


class CaptureReport(NamedTuple):
    """What recording decode steps beforehand took.

    sizes: numbers of rows. seconds: in all. num_bytes: device memory that it left occupied.
    """

    sizes: tuple[int, ...] = ()
    seconds: float = 0.0
    num_bytes: int = 0


class Executor(Protocol):
    """Carries out step plans. `torch` runs the model; `simulated` asks a cost model."""

    def execute(self, plan: StepPlan) -> StepOutcome:
        """Do what `plan` says and return the chosen tokens and the time it took."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

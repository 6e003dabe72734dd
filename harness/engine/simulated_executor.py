"""The executor without a device: a virtual clock and a constant step time."""

from __future__ import annotations

from harness.engine.plan import StepOutcome, StepPlan


class SimulatedExecutor:
    """Answers every plan after `step_s` seconds of virtual time.

    Its choices are placeholders: a simulated run needs forced ids or forced lengths to stand
    for a real one.
    """

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def execute(self, plan: StepPlan) -> StepOutcome:
        num_sampled = sum(chunk.samples for chunk in plan.chunks)
        return StepOutcome((0,) * num_sampled, (), self._step_s)

    def close(self) -> None:
        return None

"""The one seam to the device."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from harness.engine.plan import StepOutcome, StepPlan


class CaptureReport(NamedTuple):
    """What recording decode steps beforehand took.

    sizes: numbers of rows. seconds: in all. num_bytes: device memory that it left occupied.
    """

    sizes: tuple[int, ...] = ()
    seconds: float = 0.0
    num_bytes: int = 0


class CaptureRefusedError(RuntimeError):
    """A step cannot be recorded: it waits for the device, or asks the host midway. CUDA's
    allocator then goes on as if recording; a process that saw this does no further run."""


class RankLostError(RuntimeError):
    """Another rank of a model that is split ended in the middle of things. The message says which
    and, if known, why; a process that met this does no further step with those ranks."""


class Executor(Protocol):
    """Carries out step plans. `torch` runs the model; `simulated` asks a cost model."""

    def execute(self, plan: StepPlan) -> StepOutcome:
        """Do what `plan` says and return the chosen tokens and the time it took."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class LateExecutor(Executor, Protocol):
    """An executor that says what came of a step some time after it was given the step; `execute`
    is `submit` and `result` in one. Steps are carried out in the order in which they came."""

    @property
    def works_apart(self) -> bool:
        """The device goes on while the host does something else, so that it pays to be ahead."""
        ...

    def submit(self, plan: StepPlan) -> Any:
        """Begin what `plan` says; returns what `result` asks for. `PENDING_TOKEN` may stand for
        what the step before draws."""
        ...

    def result(self, pending: Any) -> StepOutcome:
        """Wait for a step. They are asked for in order, the last one before the one after next
        is submitted."""
        ...


def works_apart(executor: Executor) -> bool:
    """`executor` is a late one, with a device of its own behind it."""
    return bool(getattr(executor, "works_apart", False))


def late(executor: Executor) -> LateExecutor:
    """`executor` itself where it is a late one, else one that is done when it was given a step."""
    return executor if works_apart(executor) else AtOnce(executor)  # type: ignore[return-value]


class AtOnce:
    """Any executor as a late one that is never late."""

    works_apart = False

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def execute(self, plan: StepPlan) -> StepOutcome:
        return self._inner.execute(plan)

    def submit(self, plan: StepPlan) -> StepOutcome:
        return self._inner.execute(plan)

    def result(self, pending: StepOutcome) -> StepOutcome:
        return pending

    def close(self) -> None:
        self._inner.close()

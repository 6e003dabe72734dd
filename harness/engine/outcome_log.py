"""What a run was told by its surroundings: who arrived before which step, and what the device
answered. With the config and the requests, it decides all that the engine does; so a run that is
told the same decides the same, whatever its clock says."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

from harness.engine.arrivals import Arrival, ArrivalSource
from harness.engine.executor import Executor, late, works_apart
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.request import Request, Workload


class LoggedArrival(NamedTuple):
    """scheduled_s: as in `Arrival`."""

    request_id: int
    scheduled_s: float


Told = tuple[LoggedArrival, ...] | StepOutcome
"""Requests that arrived at one time, none where the engine was told that this is all for now; or
the outcome of a step."""


_NOT_IN_YET = StepOutcome((), (), math.nan)


class OutcomeLog:
    """All that a run was told, in order."""

    def __init__(self, told: list[Told] | None = None) -> None:
        self.told: list[Told] = [] if told is None else told


class LoggedArrivals:
    """Passes arrivals on and writes them down."""

    def __init__(self, inner: ArrivalSource, log: OutcomeLog) -> None:
        self._inner = inner
        self._told = log.told

    def next_arrival_s(self) -> float:
        return self._inner.next_arrival_s()

    def take_arrived(self, now_s: float) -> list[Arrival]:
        arrived = self._inner.take_arrived(now_s)
        follows_some = self._told and type(self._told[-1]) is tuple and self._told[-1]
        if arrived or follows_some:
            self._told.append(tuple(LoggedArrival(r.request_id, at) for r, at in arrived))
        return arrived

    def note_end(self, request: Request, now_s: float) -> None:
        self._inner.note_end(request, now_s)

    def awaits_end(self, request: Request) -> bool:
        return self._inner.awaits_end(request)


class LoggedExecutor:
    """Passes plans on and writes down what comes back, in the place of the plan."""

    def __init__(self, inner: Executor, log: OutcomeLog) -> None:
        self._late = late(inner)
        self._told = log.told

    @property
    def works_apart(self) -> bool:
        return works_apart(self._late)

    def execute(self, plan: StepPlan) -> StepOutcome:
        return self.result(self.submit(plan))

    def submit(self, plan: StepPlan) -> tuple[int, Any]:
        place = len(self._told)
        self._told.append(_NOT_IN_YET)
        return place, self._late.submit(plan)

    def result(self, pending: tuple[int, Any]) -> StepOutcome:
        place, late = pending
        outcome = self._told[place] = self._late.result(late)
        return outcome

    def close(self) -> None:
        self._late.close()


class Replay:
    """The surroundings of a run as a log tells them: its arrivals and its executor.

    A plan that asks for another number of tokens than the log has is a ReplayError: the run has
    decided otherwise.
    """

    def __init__(self, workload: Workload, log: OutcomeLog) -> None:
        self._requests = workload.requests
        self._left = deque(log.told)
        self._num_steps = 0

    def next_arrival_s(self) -> float:
        """Now, while there is more to come."""
        return 0.0 if self._left else math.inf

    def take_arrived(self, now_s: float) -> list[Arrival]:
        if not self._left or isinstance(self._left[0], StepOutcome):
            return []
        arrived = self._left.popleft()
        assert not isinstance(arrived, StepOutcome)
        return [Arrival(self._requests[index], at) for index, at in arrived]

    def note_end(self, request: Request, now_s: float) -> None:
        return None

    def awaits_end(self, request: Request) -> bool:
        return False

    def execute(self, plan: StepPlan) -> StepOutcome:
        told = self._left.popleft() if self._left else ()
        if not isinstance(told, StepOutcome):
            raise ReplayError(f"step {self._num_steps}: the log has no such step")
        asked, answered = _asked(plan, told), _answered(told)
        if asked != answered:
            raise ReplayError(
                f"step {self._num_steps}: the plan asks for {asked} and the log answers {answered} "
                "(tokens, beams, drafted sequences)"
            )
        self._num_steps += 1
        return told

    def close(self) -> None:
        return None

    def check_end(self) -> None:
        """Raise ReplayError where the log goes on."""
        rest = sum(isinstance(told, StepOutcome) for told in self._left)
        if rest:
            raise ReplayError(f"it ended after {self._num_steps} steps, the log has {rest} more")


class ReplayError(RuntimeError):
    """A run has decided otherwise than the one whose log it was given."""


def _asked(plan: StepPlan, told: StepOutcome) -> tuple[int, int, int]:
    drafted = [chunk for chunk in plan.chunks if chunk.num_drafts]
    plain = [chunk for chunk in plan.chunks if not chunk.num_drafts]
    tokens = sum(len(chunk.draws) for chunk in plain if not chunk.num_candidates)
    tokens += sum(accepted + 1 for accepted in told.num_accepted[: len(drafted)])
    return tokens, sum(chunk.num_candidates > 0 for chunk in plain), len(drafted)


def _answered(told: StepOutcome) -> tuple[int, int, int]:
    return len(told.token_ids), len(told.candidates), len(told.num_accepted)

"""The engine loop: continuous batching over any executor."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from allocators.base import Usage
from harness.engine.arrivals import ArrivalSource
from harness.engine.clock import Clock, Stopwatch
from harness.engine.executor import Executor, LateExecutor, late, works_apart
from harness.engine.plan import StepOutcome
from harness.engine.request import Request
from harness.engine.scheduling.held_prefixes import HeldPrefix
from harness.engine.scheduling.scheduler import Scheduler
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.step_builder import ScheduledStep


class StepTimes(NamedTuple):
    """start_s, end_s: on the engine's clock; the next step starts at the end of this one at the
    earliest. host_s: what the host did since the step before ended, whatever the device did."""

    start_s: float
    end_s: float
    host_s: float


class Recorder(Protocol):
    """Watches a run; what it does takes no part in any decision."""

    def decided(self, step: ScheduledStep, usage: Usage, held: list[HeldPrefix]) -> None:
        """All decisions up to `step` are made; memory is as it is while it runs. `held` became
        live before it."""

    def done(self, outcome: StepOutcome, times: StepTimes) -> None:
        """The device is done with the step that was decided last."""

    def finished(self, group: SequenceGroup) -> None: ...

    def refused(self, request: Request, released_s: float, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What no request may exceed, whatever the strategy.

    pool_tokens: slots of the pool. max_positions: positions the model was made for.
    max_num_seqs, token_budget: sequences that run, and tokens computed, at one time.
    """

    pool_tokens: int
    page_size: int
    max_positions: int
    max_num_seqs: int = sys.maxsize
    token_budget: int = sys.maxsize

    def reason_to_refuse(self, request: Request) -> str | None:
        """Why `request` can never be served, with the sizes, or None."""
        if not request.prompt_ids or request.max_tokens < 1:
            return (
                f"prompt of {len(request.prompt_ids)} tokens, at most {request.max_tokens} output "
                "tokens: a request needs at least one of each"
            )
        output_len = request.true_output_len
        if output_len is not None and not 1 <= output_len <= request.max_tokens:
            return f"forces {output_len} output tokens: not between 1 and {request.max_tokens}"
        count = request.num_sequences
        if count > min(self.max_num_seqs, self.token_budget):
            return (
                f"asks for {_branches(request)}, which go on together; at most "
                f"{self.max_num_seqs} sequences run and {self.token_budget} tokens are computed "
                "in a step: raise engine.max_num_seqs or engine.token_budget, or ask for fewer"
            )
        needed = count * -(-request.max_len // self.page_size) * self.page_size
        if needed > self.pool_tokens:
            each = "" if count == 1 else f"{_branches(request)}, each "
            return (
                f"needs up to {needed} token slots ({each}prompt {len(request.prompt_ids)} + "
                f"output {request.max_tokens}), the pool has {self.pool_tokens}: raise "
                "kv.pool_tokens or kv.memory_fraction, or lower workload.max_len"
                + ("" if count == 1 else " or the number of branches")
            )
        if request.max_len + 1 > self.max_positions:
            return (
                f"prompt {len(request.prompt_ids)} + output {request.max_tokens} exceed the "
                f"model's {self.max_positions} positions: lower workload.max_len or "
                "workload.length_scale"
            )
        return None

    def reason_not_placed(self, group: SequenceGroup, max_sequence_pages: int) -> str:
        """What to tell the owner of a group that the strategy cannot place in an idle pool."""
        return (
            f"asked for {_times(group.request)}{group.asked_len} token slots (prompt "
            f"{group.num_prompt_tokens}, {group.longest_len} known), the strategy gives "
            "one sequence at most "
            f"{max_sequence_pages * self.page_size} of the pool's {self.pool_tokens}: raise "
            "kv.pool_tokens, or choose allocator.fit or allocator.expected with less round-up"
        )


def _branches(request: Request) -> str:
    kind = "samples" if request.beam is None else "beams"
    return f"{request.num_sequences} {kind}"


def _times(request: Request) -> str:
    return "" if request.num_sequences == 1 else f"{request.num_sequences} x "


@dataclass(slots=True)
class _Flight:
    """A step that was submitted. outcome: where it was asked for before the step is over. ended:
    groups it was the last of, once that is decided."""

    step: ScheduledStep
    pending: Any
    start_s: float
    outcome: StepOutcome | None = None
    is_foreseen: bool = False
    ended: list[SequenceGroup] = field(default_factory=list)


class Engine:
    """Runs a workload to its end. Scheduler and allocator are the same under every executor.

    overlap: with an executor that works apart, a step is decided and submitted while the device
    has the one before, wherever no decision depends on the outcome of that one. Decisions are the
    same either way (docs/engine.md).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        recorder: Recorder,
        limits: Limits,
        usage: UsageReader,
        *,
        overlap: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._executor: LateExecutor = late(executor)
        self._clock = clock
        self._recorder = recorder
        self._limits = limits
        self._usage = usage
        self._overlaps = overlap and works_apart(executor)
        self._next_seq_id = 0
        self._held: list[HeldPrefix] = []
        self._stopwatch = Stopwatch()
        self._last_end_s = 0.0
        self._flying: _Flight | None = None

    def run(self, source: ArrivalSource) -> None:
        """Serve every request of `source` that can be served."""
        flying: _Flight | None = None
        while True:
            self._admit_arrivals(source)
            flight = self._begin(source)
            self._land(flying, source)
            flying = None
            if flight is None:
                if math.isinf(source.next_arrival_s()):
                    self.check_done()
                    return
                self._clock.wait_until(source.next_arrival_s())
                self._stopwatch.restart()
                continue
            foreseen = self._foresee(flight.step, source) if self._overlaps else None
            flying = None if foreseen is None else flight
            if foreseen is None:
                self._land(flight, source)
            else:
                flight.is_foreseen = True
                self._decide(flight, foreseen, math.nan)

    def admit(self, source: ArrivalSource, now_s: float) -> None:
        """Take in what has arrived by `now_s`, which no step that is under way ends after. With
        `start_step` and `end_step` it is `run` in pieces, for whoever has the clocks of several
        engines to keep in step; all on a virtual clock, and no executor works apart."""
        self._clock.wait_until(now_s)
        self._admit_arrivals(source)

    def start_step(self, source: ArrivalSource) -> float:
        """Begin the next step, and return when it ends; infinity where there is none until more
        arrives."""
        self._stopwatch.resume()
        flight = self._flying = self._begin(source)
        end_s = math.inf
        if flight is None:
            self._stopwatch.restart()
        else:
            flight.outcome = self._executor.result(flight.pending)
            end_s = self._clock.now_s() + flight.outcome.duration_s
        self._stopwatch.pause()
        return end_s

    def end_step(self, source: ArrivalSource) -> None:
        """The step that was begun last is over: its time has come."""
        flight, self._flying = self._flying, None
        assert flight is not None
        self._stopwatch.resume()
        self._land(flight, source)
        for group in flight.ended:
            group.let_go()
        self._stopwatch.pause()

    def _begin(self, source: ArrivalSource) -> _Flight | None:
        """Decide and submit the next step; None where there is nothing to do."""
        start_s = self._clock.now_s()
        step = self._scheduler.schedule(start_s)
        for group in step.unplaceable:
            reason = self._limits.reason_not_placed(group, self._usage.max_sequence_pages)
            self._refuse(source, group.request, group.released_s, reason)
        if step.is_empty:
            return None
        return _Flight(step, self._executor.submit(step.plan), start_s)

    def _land(self, flight: _Flight | None, source: ArrivalSource) -> None:
        """Wait for a step, if there is one, and take in what came of it."""
        if flight is None:
            return
        outcome = flight.outcome or self._executor.result(flight.pending)
        self._clock.advance(outcome.duration_s)
        now_s = self._clock.now_s()
        if flight.is_foreseen:
            self._scheduler.fill_in(flight.step, outcome, now_s, flight.ended)
        else:
            self._decide(flight, outcome, now_s)
        start_s, self._last_end_s = max(flight.start_s, self._last_end_s), now_s
        host_s = self._stopwatch.restart() - outcome.waited_s
        self._recorder.done(outcome, StepTimes(start_s, now_s, host_s))
        for group in flight.ended:
            self._recorder.finished(group)
            source.note_end(group.request, now_s)

    def _decide(self, flight: _Flight, outcome: StepOutcome, now_s: float) -> None:
        """All that follows from a step's outcome, before the next one is scheduled."""
        self._scheduler.commit(flight.step, outcome, now_s)
        self._recorder.decided(flight.step, self._usage.usage(), self._held)
        flight.ended = self._scheduler.retire(flight.step, now_s)
        self._held = self._scheduler.take_held()

    def _foresee(self, step: ScheduledStep, source: ArrivalSource) -> StepOutcome | None:
        """A step's outcome, where no decision has to wait for it: neither the scheduler's nor
        that of a user who waits for an answer."""
        for sequence in step.sequences:
            if sequence.is_at_last_token and source.awaits_end(sequence.group.request):
                return None
        return self._scheduler.foresee(step)

    def check_done(self) -> None:
        """A strategy that refuses what its pool has room for must not end a run in silence."""
        if unfinished := self._scheduler.num_unfinished:
            raise RuntimeError(
                f"{unfinished} requests are unfinished, but none can be given memory although "
                "nothing runs: the allocator refuses them for ever (try `make contract`)"
            )

    def _admit_arrivals(self, source: ArrivalSource) -> None:
        while arrived := source.take_arrived(self._clock.now_s()):
            for request, released_s in arrived:
                reason = self._limits.reason_to_refuse(request)
                if reason is None:
                    self._scheduler.add(SequenceGroup(self._next_seq_id, request, released_s))
                    self._next_seq_id += request.num_sequences
                else:
                    self._refuse(source, request, released_s, reason)

    def _refuse(
        self, source: ArrivalSource, request: Request, released_s: float, reason: str
    ) -> None:
        self._recorder.refused(request, released_s, reason)
        source.note_end(request, self._clock.now_s())


class UsageReader(Protocol):
    """The part of an allocator that the loop reads."""

    def usage(self) -> Usage: ...

    @property
    def max_sequence_pages(self) -> int: ...

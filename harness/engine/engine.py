"""The engine loop: continuous batching over any executor."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Protocol

from allocators.base import Usage
from harness.engine.arrivals import ArrivalSource
from harness.engine.clock import Clock
from harness.engine.executor import Executor
from harness.engine.plan import StepOutcome
from harness.engine.request import Request
from harness.engine.scheduling.held_prefixes import HeldPrefix
from harness.engine.scheduling.scheduler import Scheduler
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.step_builder import ScheduledStep


class Recorder(Protocol):
    """Watches a run; what it does takes no part in any decision."""

    def step(
        self,
        step: ScheduledStep,
        outcome: StepOutcome,
        start_s: float,
        now_s: float,
        usage: Usage,
        held: list[HeldPrefix],
    ) -> None:
        """A step is done; memory is as it was while it ran. `held` became live before it."""

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


class Engine:
    """Runs a workload to its end. Scheduler and allocator are the same under every executor."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        recorder: Recorder,
        limits: Limits,
        usage: UsageReader,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._recorder = recorder
        self._limits = limits
        self._usage = usage
        self._next_seq_id = 0

    def run(self, source: ArrivalSource) -> None:
        """Serve every request of `source` that can be served."""
        held: list[HeldPrefix] = []
        while True:
            self._admit_arrivals(source)
            start_s = self._clock.now_s()
            step = self._scheduler.schedule(start_s)
            for group in step.unplaceable:
                reason = self._limits.reason_not_placed(group, self._usage.max_sequence_pages)
                self._refuse(source, group.request, group.released_s, reason)
            if step.is_empty:
                if math.isinf(source.next_arrival_s()):
                    self._check_done()
                    return
                self._clock.wait_until(source.next_arrival_s())
                continue
            outcome = self._executor.execute(step.plan)
            self._clock.advance(outcome.duration_s)
            now_s = self._clock.now_s()
            self._scheduler.commit(step, outcome, now_s)
            self._recorder.step(step, outcome, start_s, now_s, self._usage.usage(), held)
            for group in self._scheduler.retire(step, now_s):
                self._recorder.finished(group)
                source.note_end(group.request, now_s)
            held = self._scheduler.take_held()

    def _check_done(self) -> None:
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

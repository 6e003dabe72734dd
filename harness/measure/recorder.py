"""Turns what happens in the engine into records."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from allocators.base import Usage
from harness.engine.memory_events import Extent, Refusal
from harness.engine.plan import StepOutcome, TableUpdate
from harness.engine.request import Request
from harness.engine.scheduler import ScheduledStep
from harness.engine.sequence import Sequence
from harness.measure.ledger import Ledger, LedgerEntry
from harness.measure.memory_map import MemoryMap
from harness.measure.metered_allocator import MeteredAllocator
from harness.measure.records import RequestRecord, StepRecord, refused_record


class _MemoryEvents(NamedTuple):
    """All that the ledger needs to know of one step."""

    freed: tuple[int, ...]
    admitted: list[Extent]
    updates: tuple[TableUpdate, ...]
    computed: list[tuple[int, int]]
    held: list[tuple[Extent, TableUpdate]]
    usage: Usage
    refusal: Refusal | None
    start_s: float
    end_s: float


class RunRecorder:
    """Records a run; `deferred` when output lengths are known only at its end.

    The ledger tells reserved slots from over-reserved ones by a sequence's final length, so a
    deferred one is worked out by `close`, from the logged events.
    """

    def __init__(
        self,
        ledger: Ledger,
        allocator: MeteredAllocator,
        *,
        deferred: bool = False,
        memory_map: MemoryMap | None = None,
    ) -> None:
        self._ledger = ledger
        self._allocator = allocator
        self._log: list[_MemoryEvents] | None = [] if deferred else None
        self._memory_map = memory_map
        self._final_len: dict[int, int] = {}
        self._host_ns_before = allocator.host_ns
        self.steps: list[StepRecord] = []
        self.entries: list[LedgerEntry] = []
        self.requests: list[RequestRecord] = []

    def step(
        self,
        step: ScheduledStep,
        outcome: StepOutcome,
        start_s: float,
        now_s: float,
        usage: Usage,
        held: list[tuple[Extent, TableUpdate]],
    ) -> None:
        """A step is done; memory is as it was while it ran. `held` became live before it."""
        plan = step.plan
        computed = [(chunk.seq_id, len(chunk.token_ids)) for chunk in plan.chunks]
        num_tokens = sum([count for _, count in computed])
        num_decode = sum(
            [chunk.output_position > 0 and len(chunk.token_ids) == 1 for chunk in plan.chunks]
        )
        host_ns, self._host_ns_before = (
            self._allocator.host_ns - self._host_ns_before,
            self._allocator.host_ns,
        )
        self.steps.append(
            StepRecord(
                step=len(self.steps),
                start_s=start_s,
                duration_s=now_s - start_s,
                num_prefill_tokens=num_tokens - num_decode,
                num_decode_tokens=num_decode,
                num_running=step.num_running,
                num_waiting=step.num_waiting,
                num_preempted=len(step.preempted),
                copied_pages=len(plan.copies),
                allocator_us=host_ns / 1e3,
                refusal=step.refusal.kind if step.refusal else "",
            )
        )
        events = _MemoryEvents(
            plan.freed_seq_ids,
            step.admitted,
            plan.table_updates,
            computed,
            held,
            usage,
            step.refusal,
            start_s,
            now_s,
        )
        if self._log is None:
            self._enter(events)
        else:
            self._log.append(events)

    def finished(self, sequence: Sequence) -> None:
        """A sequence has its last token."""
        seq_id, request = sequence.seq_id, sequence.request
        self._final_len[seq_id] = sequence.num_computed_tokens
        self.requests.append(
            RequestRecord(
                request_id=request.request_id,
                session_id=request.session_id,
                status="finished",
                reason="",
                arrival_s=sequence.released_s,
                first_scheduled_s=sequence.first_scheduled_s,
                first_token_s=sequence.token_s[0],
                finish_s=sequence.finish_s,
                num_prompt_tokens=sequence.num_prompt_tokens,
                num_output_tokens=sequence.num_output_tokens,
                num_cached_tokens=sequence.num_cached_tokens,
                num_preemptions=sequence.num_preemptions,
                recomputed_tokens=sequence.recomputed_tokens,
                waited_for_room=sequence.waits_for_room,
                itl_ms=[1e3 * (after - before) for before, after in pairwise(sequence.token_s)],
                chosen_ids=sequence.chosen_ids,
                margins=sequence.margins,
            )
        )

    def refused(self, request: Request, released_s: float, reason: str) -> None:
        """A request will never be served."""
        self.requests.append(
            refused_record(
                request.request_id,
                request.session_id,
                len(request.prompt_ids),
                released_s,
                reason,
            )
        )

    def close(self) -> None:
        """Work out what had to wait for the end of the run."""
        log, self._log = self._log or [], None
        for events in log:
            known = [
                extent._replace(final_len=self._final_len.get(extent.seq_id, extent.final_len))
                for extent in events.admitted
            ]
            self._enter(events._replace(admitted=known))

    def _enter(self, events: _MemoryEvents) -> None:
        ledger = self._ledger
        for extent, update in events.held:
            ledger.admit(extent)
            ledger.map(update)
        for seq_id in events.freed:
            ledger.unmap(seq_id)
        for extent in events.admitted:
            ledger.admit(extent)
        for update in events.updates:
            ledger.map(update)
        ledger.advance(events.computed)
        self.entries.append(ledger.entry(events.usage, events.refusal))
        if self._memory_map is not None:
            self._memory_map.sample(ledger, events.start_s, events.end_s)

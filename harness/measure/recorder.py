"""Turns what happens in the engine into records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import NamedTuple

from allocators.base import Usage
from harness.engine.engine import StepTimes
from harness.engine.memory_events import Extent, Refusal
from harness.engine.page_book import PageBook
from harness.engine.plan import DraftPlan, StepOutcome, TableUpdate
from harness.engine.request import Request
from harness.engine.scheduling.held_prefixes import HeldPrefix
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.step_builder import DraftEvents, ScheduledStep
from harness.measure.ledger import Ledger, LedgerEntry
from harness.measure.memory_map import MemoryMap
from harness.measure.record_files import RecordSink
from harness.measure.records import RequestRecord, StepRecord, refused_record


class _MemoryEvents(NamedTuple):
    """All that the ledger needs to know of one step."""

    freed: tuple[int, ...]
    admitted: list[Extent]
    updates: tuple[TableUpdate, ...]
    inherited: list[tuple[int, int]]
    computed: list[tuple[int, int]]
    shrunk: list[TableUpdate]
    held: list[HeldPrefix]
    usage: Usage
    refusal: Refusal | None
    start_s: float
    end_s: float
    draft_plan: DraftPlan | None
    draft: DraftEvents | None


class _Decided(NamedTuple):
    """A step that is not done yet."""

    step: ScheduledStep
    usage: Usage
    held: list[HeldPrefix]
    allocator_ns: int


class RunRecorder:
    """Records a run into `sink`; `deferred` when output lengths are known only at its end.

    The ledger tells reserved slots from over-reserved ones by a sequence's final length, so a
    deferred one is worked out by `close`, from the logged events. keeps_tokens: with each request
    the executor's own choices and their margins. replica: of a fleet, which of them this is.
    num_steps, num_ended: steps that are done and requests that are answered or refused so far;
    num_output_tokens: of the answered ones. schedule_digest: of a deferred one that is closed.
    """

    def __init__(
        self,
        ledger: Ledger,
        page_book: PageBook,
        sink: RecordSink,
        *,
        deferred: bool = False,
        keeps_tokens: bool = True,
        memory_map: MemoryMap | None = None,
        draft_ledger: Ledger | None = None,
        replica: int = 0,
    ) -> None:
        self._ledger = ledger
        self._page_book = page_book
        self.sink = sink
        self._keeps_tokens = keeps_tokens
        self._replica = replica
        self.num_ended = 0
        self.num_output_tokens = 0
        self.num_steps = 0
        self._log: list[tuple[StepRecord, _MemoryEvents]] | None = [] if deferred else None
        self._memory_map = memory_map
        self._draft_ledger = draft_ledger
        self._final_len: dict[int, int] = {}
        self._host_ns_before = page_book.host_ns
        self._decided: _Decided | None = None
        self.schedule_digest = ""

    def decided(self, step: ScheduledStep, usage: Usage, held: list[HeldPrefix]) -> None:
        """All decisions up to `step` are made; memory is as it is while it runs. `held` became
        live before it."""
        host_ns = self._page_book.host_ns
        self._decided = _Decided(step, usage, held, host_ns - self._host_ns_before)
        self._host_ns_before = host_ns

    def done(self, outcome: StepOutcome, times: StepTimes) -> None:
        """The device is done with the step that was decided last."""
        assert self._decided is not None
        (step, usage, held, allocator_ns), self._decided = self._decided, None
        plan = step.plan
        chunks = plan.chunks
        computed = [(chunk[0], len(chunk[2])) for chunk in chunks]
        num_tokens = sum([count for _, count in computed])
        num_drafts = sum([chunk.num_drafts for chunk in chunks]) if outcome.num_accepted else 0
        num_decode = num_drafts + sum([c[4] > 0 and len(c[2]) == 1 + c[6] for c in chunks])
        if step.rejected:
            wrong = step.rejected
            computed = [(seq_id, count - wrong.get(seq_id, 0)) for seq_id, count in computed]
        record = StepRecord(
            step=self.num_steps,
            start_s=times.start_s,
            duration_s=times.end_s - times.start_s,
            num_prefill_tokens=num_tokens - num_decode,
            num_decode_tokens=num_decode,
            num_draft_tokens=num_drafts,
            num_running=step.num_running,
            num_waiting=step.num_waiting,
            num_preempted=len(step.preempted),
            copied_pages=len(plan.copies),
            saved_pages=len(plan.saves),
            restored_pages=len(plan.restores),
            allocator_us=allocator_ns / 1e3,
            host_us=times.host_s * 1e6,
            device_us=outcome.device_s * 1e6,
            broadcast_bytes=outcome.broadcast_bytes,
            refusal=step.refusal.kind if step.refusal else "",
            replica=self._replica,
        )
        self.num_steps += 1
        events = _MemoryEvents(
            plan.freed_seq_ids,
            step.admitted,
            plan.table_updates,
            step.inherited,
            computed,
            step.shrunk,
            held,
            usage,
            step.refusal,
            times.start_s,
            times.end_s,
            plan.draft,
            step.draft,
        )
        if self._log is None:
            self._enter(record, events)
        else:
            self._log.append((record, events))

    def finished(self, group: SequenceGroup) -> None:
        """A group has its last token."""
        request = group.request
        num_output_tokens = sum(s.num_output_tokens for s in group.sequences)
        self.num_ended += 1
        self.num_output_tokens += num_output_tokens
        if self._log is not None:
            for sequence in group.sequences:
                self._final_len[sequence.seq_id] = sequence.furthest_computed
        longest = max(group.sequences, key=lambda sequence: sequence.num_output_tokens)
        kept = group.sequences if self._keeps_tokens else ()
        self.sink.request(
            RequestRecord(
                request_id=request.request_id,
                session_id=request.session_id,
                status="finished",
                reason="",
                arrival_s=group.released_s,
                first_scheduled_s=group.first_scheduled_s,
                first_token_s=longest.token_s[0],
                finish_s=group.finish_s,
                num_prompt_tokens=group.num_prompt_tokens,
                num_output_tokens=num_output_tokens,
                output_len=longest.num_output_tokens,
                num_cached_tokens=group.num_cached_tokens,
                num_preemptions=group.num_preemptions,
                num_swaps=group.num_swaps,
                recomputed_tokens=group.recomputed_tokens,
                stalled_s=group.stalled_s,
                num_drafted_tokens=sum(s.num_drafted for s in group.sequences),
                num_accepted_tokens=sum(s.num_accepted for s in group.sequences),
                waited_for_room=group.waits_for_room,
                itl_ms=[1e3 * (after - before) for before, after in pairwise(longest.token_s)],
                sequence_lens=[len(s.chosen_ids) for s in group.sequences],
                chosen_ids=list(chain.from_iterable(s.chosen_ids for s in kept)),
                margins=list(chain.from_iterable(s.margins for s in kept)),
                replica=self._replica,
            )
        )

    def refused(self, request: Request, released_s: float, reason: str) -> None:
        """A request will never be served."""
        self.num_ended += 1
        self.sink.request(
            refused_record(
                request.request_id,
                request.session_id,
                len(request.prompt_ids),
                released_s,
                reason,
                self._replica,
            )
        )

    def close(self) -> None:
        """Work out what had to wait for the end of the run."""
        log, self._log = self._log or [], None
        self.schedule_digest = _schedule_digest(log)
        for record, events in log:
            self._enter(record, events._replace(admitted=self._resolved(events.admitted)))
        if not self._ledger.places_contiguously:
            self.sink.settle(self._replica)

    def _resolved(self, extents: Iterable[Extent]) -> list[Extent]:
        """With the final lengths that are known by now."""
        return [
            extent._replace(final_len=self._final_len.get(extent.seq_id, extent.final_len))
            for extent in extents
        ]

    def _enter(self, record: StepRecord, events: _MemoryEvents) -> None:
        ledger = self._ledger
        for extent, tables in events.held:
            ledger.admit(extent)
            for update in tables:
                ledger.map(update)
        for seq_id in events.freed:
            ledger.unmap(seq_id)
        for extent in events.admitted:
            ledger.admit(extent)
        for update in events.updates:
            ledger.map(update)
        ledger.advance(events.inherited)
        ledger.advance(events.computed)
        for update in events.shrunk:
            ledger.map(update)
        entry = ledger.entry(events.usage, events.refusal)
        draft: LedgerEntry | None = None
        if self._draft_ledger is not None and events.draft is not None:
            draft = self._draft_entry(self._draft_ledger, events.draft_plan, events.draft)
        self.sink.step(record, entry, draft)
        if self._memory_map is not None:
            self._memory_map.sample(ledger, events.start_s, events.end_s)

    def _draft_entry(
        self, ledger: Ledger, plan: DraftPlan | None, events: DraftEvents
    ) -> LedgerEntry:
        if plan is not None:
            for seq_id in plan.freed_seq_ids:
                ledger.unmap(seq_id)
            for extent in self._resolved(plan.admitted):
                ledger.admit(extent)
            for update in plan.table_updates:
                ledger.map(update)
        ledger.advance(events.computed)
        for update in events.shrunk:
            ledger.map(update)
        return ledger.entry(events.usage, None)


def _schedule_digest(log: Iterable[tuple[StepRecord, _MemoryEvents]]) -> str:
    """Equal for runs that decided alike: the same tokens of the same sequences computed in the same
    steps, and as many pages copied, saved and restored. Which pages these are is left aside."""
    digest = hashlib.sha256()
    for record, events in log:
        moved = (record.copied_pages, record.saved_pages, record.restored_pages)
        drafts = (record.num_draft_tokens, events.draft_plan is not None)
        digest.update(repr((events.computed, events.freed, moved, drafts)).encode())
    return digest.hexdigest()[:16]

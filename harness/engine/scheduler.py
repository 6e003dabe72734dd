"""First come, first served, under a token budget and the memory an allocator can give."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

from allocators.base import UNCHANGED, Allocation, KVCacheAllocator, PageCopy
from harness.engine.held_prefixes import HeldPrefixes
from harness.engine.length_estimate import LengthEstimator
from harness.engine.memory_events import Extent, Refusal
from harness.engine.plan import Chunk, StepOutcome, StepPlan, TableUpdate
from harness.engine.sequence import Sequence

Schedule = Literal["mixed_chunked", "mixed_unchunked"]


@dataclass(slots=True)
class ScheduledStep:
    """A plan for the device and what led to it. `sequences` is parallel to `plan.chunks`.

    unplaceable: sequences that left the queue for good, because the strategy could not place
    them even in an idle pool.
    """

    plan: StepPlan
    sequences: list[Sequence]
    admitted: list[Extent]
    preempted: list[Sequence]
    unplaceable: list[Sequence]
    refusal: Refusal | None
    num_running: int
    num_waiting: int

    @property
    def is_empty(self) -> bool:
        return not self.plan.chunks


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """schedule: `mixed_chunked` splits prompts over steps (Sarathi-Serve, section 4.2);
    `mixed_unchunked` computes a prompt whole, beside decodes (PagedAttention, section 6.1).
    token_budget: tokens a step computes at most; with `mixed_unchunked` the first prompt of a
    step may exceed it, further ones must fit in what is left. watermark: share of the pool
    that an admission leaves available for the growth of running sequences.
    """

    schedule: Schedule = "mixed_chunked"
    token_budget: int = 512
    max_num_seqs: int = 256
    watermark: float = 0.01


@dataclass(slots=True)
class _Draft:
    """A step being put together."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    updates: list[TableUpdate] = field(default_factory=list)
    copies: list[PageCopy] = field(default_factory=list)
    admitted: list[Extent] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    unplaceable: list[Sequence] = field(default_factory=list)
    refusal: Refusal | None = None
    num_prefills: int = 0


class Scheduler:
    """Decides which sequences run, and asks the allocator for their memory."""

    def __init__(
        self, allocator: KVCacheAllocator, config: SchedulerConfig, estimator: LengthEstimator
    ) -> None:
        self._allocator = allocator
        self._config = config
        self._estimator = estimator
        self._splits_prompts = config.schedule == "mixed_chunked"
        self._watermark_pages = int(config.watermark * allocator.pool.num_pages)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._freed_seq_ids: list[int] = []
        self._prefixes = HeldPrefixes(allocator)

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others."""
        self._waiting.append(sequence)

    def schedule(self, now_s: float) -> ScheduledStep:
        """Plan one step: running sequences first, then as much of the queue as fits."""
        draft = _Draft(self._config.token_budget)
        self._schedule_running(draft)
        if not draft.preempted or not draft.chunks:
            self._admit_waiting(draft, now_s)
        else:
            draft.refusal = Refusal(self._waiting[0].request.request_id, "full")
        plan = StepPlan(
            tuple(draft.chunks),
            tuple(draft.updates),
            tuple(self._freed_seq_ids) if draft.chunks else (),
            tuple(draft.copies),
        )
        if draft.chunks:  # an empty plan is not carried out: its frees belong to the next one
            self._freed_seq_ids.clear()
        return ScheduledStep(
            plan,
            draft.sequences,
            draft.admitted,
            draft.preempted,
            draft.unplaceable,
            draft.refusal,
            len(self._running),
            len(self._waiting),
        )

    def commit(self, step: ScheduledStep, outcome: StepOutcome, now_s: float) -> None:
        """Take the results in: tokens are computed, publishable, and sampled ones appended."""
        sampled = zip(outcome.token_ids, outcome.margins or repeat(0.0), strict=False)
        commit = self._allocator.commit
        for sequence, chunk in zip(step.sequences, step.plan.chunks, strict=True):
            start = chunk.start
            end = sequence.num_computed_tokens = start + len(chunk.token_ids)
            furthest = sequence.furthest_computed
            if start < furthest:
                sequence.recomputed_tokens += min(end, furthest) - start
            if end > furthest:
                sequence.furthest_computed = end
            commit(sequence.seq_id, chunk.token_ids)
            if chunk.samples:
                chosen_id, margin = next(sampled)
                sequence.accept(chosen_id, margin, now_s)

    def retire(self, step: ScheduledStep) -> list[Sequence]:
        """Give back the memory of finished sequences and return them; keep declared prefixes."""
        if self._allocator.shares_declared_prefix:
            for sequence in step.sequences:
                self._prefixes.hold(sequence)
        finished = [sequence for sequence in step.sequences if sequence.finished]
        if finished:
            for sequence in finished:
                self._free(sequence.seq_id)
            self._running = [sequence for sequence in self._running if not sequence.finished]
        return finished

    def take_held(self) -> list[tuple[Extent, TableUpdate]]:
        """Prefixes held for reuse since the last call: live memory that never runs."""
        return self._prefixes.take_new()

    def _schedule_running(self, draft: _Draft) -> None:
        index = 0
        while index < len(self._running) and draft.budget > 0:
            sequence = self._running[index]
            if self._make_room(sequence, draft):
                self._add_chunk(sequence, draft)
                index += 1

    def _make_room(self, sequence: Sequence, draft: _Draft) -> bool:
        """Room for the sequence's tokens, at the cost of the latest; False if it went itself."""
        missing = len(sequence.token_ids) - sequence.num_slots
        if missing <= 0:
            return True
        while (allocation := self._allocator.append(sequence.seq_id, missing)) is None:
            if self._drop_prefix(self._running if len(self._running) > 1 else ()):
                continue
            victim = self._running.pop()
            self._preempt(victim, draft)
            if victim is sequence:
                return False
        sequence.num_slots += missing
        if allocation is not UNCHANGED:
            self._note_changes(sequence, allocation, draft)
        return True

    def _admit_waiting(self, draft: _Draft, now_s: float) -> None:
        config = self._config
        while self._waiting and draft.budget > 0 and len(self._running) < config.max_num_seqs:
            sequence = self._waiting[0]
            if not self._splits_prompts and not self._fits_whole(sequence, draft):
                return
            allocation = self._place(sequence)
            if allocation is None:
                if self._is_unplaceable(sequence):
                    draft.unplaceable.append(self._waiting.popleft())
                    continue
                sequence.waits_for_room = True
                draft.refusal = self._explain_refusal(sequence)
                return
            self._waiting.popleft()
            self._running.append(sequence)
            sequence.num_slots = len(sequence.token_ids)
            sequence.num_computed_tokens = allocation.num_cached_tokens
            if sequence.admissions == 0:
                sequence.first_scheduled_s = now_s
            sequence.num_cached_tokens += max(
                0, allocation.num_cached_tokens - sequence.furthest_computed
            )
            sequence.admissions += 1
            draft.admitted.append(
                Extent(
                    sequence.seq_id,
                    allocation.num_cached_tokens,
                    sequence.final_len,
                    sequence.asked_len,
                )
            )
            self._note_changes(sequence, allocation, draft)
            self._add_chunk(sequence, draft)

    def _fits_whole(self, sequence: Sequence, draft: _Draft) -> bool:
        """Whether an unchunked prompt may join; one a step always may, or decodes could hold
        it back until they are few."""
        return len(sequence.token_ids) <= draft.budget or draft.num_prefills == 0

    def _place(self, sequence: Sequence) -> Allocation | None:
        """Memory for the head of the queue, at the cost of held prefixes but of nobody else."""
        while (allocation := self._allocate(sequence)) is None:
            if not self._drop_prefix([*self._running, sequence] if self._running else ()):
                return None
        return allocation

    def _is_unplaceable(self, sequence: Sequence) -> bool:
        """A refused sequence would be refused by an idle pool as well."""
        needed = self._allocator.pages_for(sequence.asked_len)
        return not self._running or needed > self._allocator.max_sequence_pages

    def _allocate(self, sequence: Sequence) -> Allocation | None:
        """Ask for a sequence's memory, by fork where its declared prefix is held."""
        request = sequence.request
        expected_len = self._expected_len(sequence)
        sequence.asked_len = max(len(sequence.token_ids), expected_len)
        if self._prefixes.serves(sequence):
            return self._prefixes.fork(sequence, expected_len, self._keep_free())
        return self._allocator.allocate(
            sequence.seq_id,
            sequence.token_ids,
            request.max_len,
            expected_len,
            keep_free=self._keep_free(),
        )

    def _expected_len(self, sequence: Sequence) -> int:
        if sequence.admissions == 0:
            return self._estimator.expected_len(sequence.request)
        return self._estimator.revised_len(sequence.request, len(sequence.token_ids))

    def _keep_free(self) -> int:
        """The watermark is for running sequences that may still grow: with none running, or
        where each was given all it can need at its admission, it would only block the queue."""
        grows = self._allocator.grows_on_demand and not self._estimator.is_sufficient
        return self._watermark_pages if self._running and grows else 0

    def _explain_refusal(self, sequence: Sequence) -> Refusal:
        request_id = sequence.request.request_id
        usage = self._allocator.usage()
        available = usage.free + usage.cached
        needed = self._allocator.pages_needed(sequence.token_ids, self._expected_len(sequence))
        if self._prefixes.serves(sequence):
            needed -= sequence.request.shared_prefix_len // self._allocator.page_size
        if needed > available:
            return Refusal(request_id, "full")
        if needed + self._keep_free() > available:
            return Refusal(request_id, "withheld")
        return Refusal(request_id, "stranded")

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
        self._free(victim.seq_id)
        victim.preempt()
        self._waiting.appendleft(victim)
        draft.preempted.append(victim)

    def _drop_prefix(self, users: Iterable[Sequence]) -> bool:
        """Give back a held prefix that none of `users` declares; False if there is none."""
        holder_id = self._prefixes.drop(users)
        if holder_id is None:
            return False
        self._freed_seq_ids.append(holder_id)
        return True

    def _free(self, seq_id: int) -> None:
        self._allocator.free(seq_id)
        self._freed_seq_ids.append(seq_id)

    def _note_changes(self, sequence: Sequence, allocation: Allocation, draft: _Draft) -> None:
        first = allocation.first_changed
        table = self._allocator.block_table(sequence.seq_id)
        if first < len(table):
            draft.updates.append(TableUpdate(sequence.seq_id, first, tuple(table[first:])))
        if allocation.copies:
            draft.copies.extend(allocation.copies)

    def _add_chunk(self, sequence: Sequence, draft: _Draft) -> None:
        start = sequence.num_computed_tokens
        token_ids = sequence.token_ids[start:]
        samples = True
        if self._splits_prompts and len(token_ids) > draft.budget:
            token_ids = token_ids[: draft.budget]
            samples = False
        draft.budget -= len(token_ids)
        draft.num_prefills += len(token_ids) > 1
        draft.chunks.append(
            Chunk(
                sequence.seq_id,
                start,
                token_ids,
                samples,
                sequence.request.sampling,
                len(sequence.token_s),
            )
        )
        draft.sequences.append(sequence)

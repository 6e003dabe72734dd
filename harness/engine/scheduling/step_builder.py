"""A step while the scheduler puts it together, and as it goes to the device and to measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from allocators.base import Allocation, KVCacheAllocator, PageCopy, Usage
from harness.engine.memory_events import Extent, Refusal
from harness.engine.plan import Chunk, DraftPlan, StepPlan, TableUpdate
from harness.engine.request import SamplingParams
from harness.engine.scheduling.sequence import Sequence, SequenceGroup

_new_tuple = tuple.__new__


class DraftEvents(NamedTuple):
    """The draft pool after a step: tokens its sequences gained, tables cut by rejection."""

    computed: tuple[tuple[int, int], ...]
    shrunk: tuple[TableUpdate, ...]
    usage: Usage


@dataclass(slots=True)
class ScheduledStep:
    """A plan for the device and what led to it. `sequences` is parallel to `plan.chunks`.

    admitted: sequences that were just given memory. inherited: tokens that sequences have
    computed without a chunk of their own, because copies bring them: (seq_id, number) pairs.
    shrunk: tables as they are after the step, where `commit` cut them (rejected drafts) or
    released their beginning (windows); rejected: tokens of drafts that did not stand, by
    sequence. draft: what became of the draft model's pool. preempted: groups that lost their
    memory. unplaceable: groups that left the queue for good, because the strategy could not
    place them even in an idle pool. num_running, num_waiting: groups.
    """

    plan: StepPlan
    sequences: list[Sequence]
    admitted: list[Extent]
    inherited: list[tuple[int, int]]
    preempted: list[SequenceGroup]
    unplaceable: list[SequenceGroup]
    refusal: Refusal | None
    num_running: int
    num_waiting: int
    shrunk: list[TableUpdate] = field(default_factory=list)
    rejected: dict[int, int] = field(default_factory=dict)
    draft: DraftEvents | None = None

    @property
    def is_empty(self) -> bool:
        """There is nothing for the device to do."""
        plan = self.plan
        return not (plan.chunks or plan.table_updates or plan.copies or plan.saves or plan.restores)


class PageCopies:
    """The copies of one allocation after the other, as copies that can all be done at once.

    Of an allocation all sources are read before any destination is written; the next one's
    sources are what the last one left. A source that was written before is traced to where its
    contents came from; copies of a page onto itself are dropped.
    """

    def __init__(self) -> None:
        self._origin: dict[int, int] = {}

    def add(self, copies: Iterable[PageCopy]) -> None:
        """These come after what was added before."""
        origin = self._origin
        self._origin = origin | {to: origin.get(source, source) for source, to in copies}

    def resolved(self) -> tuple[PageCopy, ...]:
        """All sources are read before any destination is written."""
        return tuple(PageCopy(source, to) for to, source in self._origin.items() if source != to)

    def origin(self, page: int) -> int:
        """The page that now holds what `page` will, before any copy is done."""
        return self._origin.get(page, page)


@dataclass(slots=True)
class StepBuilder:
    """What has been decided for a step so far. budget: tokens that may still be computed."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    updates: list[TableUpdate] = field(default_factory=list)
    copies: PageCopies = field(default_factory=PageCopies)
    saves: list[PageCopy] = field(default_factory=list)
    restores: list[PageCopy] = field(default_factory=list)
    admitted: list[Extent] = field(default_factory=list)
    inherited: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[SequenceGroup] = field(default_factory=list)
    unplaceable: list[SequenceGroup] = field(default_factory=list)
    refusal: Refusal | None = None
    num_prefills: int = 0

    def add_chunk(self, sequence: Sequence, chunk: Chunk) -> None:
        """Compute `chunk` of `sequence` in this step."""
        num_tokens = len(chunk.token_ids)
        self.budget -= num_tokens
        self.num_prefills += num_tokens > 1 + chunk.num_drafts
        self.chunks.append(chunk)
        self.sequences.append(sequence)

    def add_decode(
        self,
        sequence: Sequence,
        start: int,
        token_id: int,
        draws: tuple[SamplingParams, ...],
        position: int,
    ) -> None:
        """As `add_chunk` of a single token. This runs for every token, so the chunk is made as
        the tuple that it is, past the constructor, which takes twice the time."""
        self.budget -= 1
        self.chunks.append(
            _new_tuple(Chunk, (sequence.seq_id, start, (token_id,), draws, position, 0, 0, ()))
        )
        self.sequences.append(sequence)

    def note_change(
        self, seq_id: int, groups: tuple[KVCacheAllocator, ...], allocation: Allocation
    ) -> None:
        """The device must carry out what `allocation` did for a sequence."""
        self.note_tables(seq_id, groups, allocation.first_changed or 0)
        if allocation.copies:
            self.copies.add(allocation.copies)

    def note_tables(
        self, seq_id: int, groups: tuple[KVCacheAllocator, ...], first_changed: int
    ) -> None:
        """The device must learn a sequence's tables from entry `first_changed` on."""
        for index, group in enumerate(groups):
            table = group.block_table(seq_id)
            if first_changed < len(table):
                change = tuple(table[first_changed:])
                self.updates.append(TableUpdate(seq_id, first_changed, change, index))

    def withdraw(self, group: SequenceGroup) -> set[int]:
        """Forget what this step was to do for a group that loses its memory after all; returns
        those of its sequences that were only given memory in this step."""
        seq_ids = {sequence.seq_id for sequence in group.sequences}
        kept = [c.seq_id not in seq_ids for c in self.chunks]
        if not all(kept):
            self.budget += sum(
                len(c.token_ids) for c, keep in zip(self.chunks, kept, strict=True) if not keep
            )
            self.sequences = [s for s, keep in zip(self.sequences, kept, strict=True) if keep]
            self.chunks = [c for c, keep in zip(self.chunks, kept, strict=True) if keep]
        never_seen = {extent.seq_id for extent in self.admitted} & seq_ids
        self.updates = [update for update in self.updates if update.seq_id not in seq_ids]
        self.admitted = [extent for extent in self.admitted if extent.seq_id not in seq_ids]
        self.inherited = [pair for pair in self.inherited if pair[0] not in seq_ids]
        return never_seen

    def finish(
        self,
        freed_seq_ids: tuple[int, ...],
        num_running: int,
        num_waiting: int,
        draft: DraftPlan | None = None,
    ) -> ScheduledStep:
        """The step as it is carried out."""
        plan = StepPlan(
            tuple(self.chunks),
            tuple(self.updates),
            freed_seq_ids,
            self.copies.resolved(),
            tuple(self.saves),
            tuple(self.restores),
            draft,
        )
        return ScheduledStep(
            plan,
            self.sequences,
            self.admitted,
            self.inherited,
            self.preempted,
            self.unplaceable,
            self.refusal,
            num_running,
            num_waiting,
        )

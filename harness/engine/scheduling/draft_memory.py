"""The draft model's share of a step: its own pool, through an allocator of its own."""

from __future__ import annotations

from allocators.base import UNCHANGED, KVCacheAllocator, Usage
from harness.engine.memory_events import Extent
from harness.engine.plan import DraftChunk, DraftPlan, TableUpdate
from harness.engine.scheduling.sequence import Sequence
from harness.engine.scheduling.step_builder import PageCopies


class DraftMemory:
    """What the draft model holds of each sequence that it drafts for.

    A sequence gets memory with its first drafts, when the draft model computes all that is known
    of it by then, and gives everything back when it ends or is preempted. Where there is no room
    it goes on without drafts.
    """

    def __init__(self, allocator: KVCacheAllocator) -> None:
        self._allocator = allocator
        self._computed: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._chunks: dict[int, DraftChunk] = {}
        self._updates: list[TableUpdate] = []
        self._copies = PageCopies()
        self._freed: list[int] = []
        self._admitted: dict[int, Extent] = {}
        self._shrunk: list[TableUpdate] = []

    def usage(self) -> Usage:
        """Pages of the draft pool by state."""
        return self._allocator.usage()

    def prepare(self, sequence: Sequence, count: int) -> bool:
        """Room to draft `count` tokens: all known ones and, but for the last, the drafts."""
        seq_id, allocator = sequence.seq_id, self._allocator
        if seq_id not in self._computed:
            known = sequence.token_ids
            group = sequence.group
            allocation = allocator.allocate(seq_id, known, group.request.max_len, group.asked_len)
            if allocation is None:
                return False
            self._computed[seq_id] = allocation.num_cached_tokens
            self._slots[seq_id] = len(known)
            self._admitted[seq_id] = Extent(
                seq_id, allocation.num_cached_tokens, sequence.final_len, group.asked_len
            )
            self._note(seq_id, 0)
            self._copies.add(allocation.copies)
        missing = len(sequence.token_ids) + count - 1 - self._slots[seq_id]
        if missing > 0:
            grown = allocator.append(seq_id, missing)
            if grown is None:
                return False
            self._slots[seq_id] += missing
            if grown is not UNCHANGED:
                self._note(seq_id, grown.first_changed or 0)
                self._copies.add(grown.copies)
        return True

    def add(self, sequence: Sequence, count: int) -> None:
        """Draft `count` tokens in this step."""
        start = self._computed[sequence.seq_id]
        self._chunks[sequence.seq_id] = DraftChunk(
            sequence.seq_id,
            start,
            sequence.token_ids[start:],
            count,
            sequence.draws[0],
            len(sequence.token_s),
        )

    def settle(self, sequence: Sequence, num_known: int, num_accepted: int) -> int:
        """Take in a step: the drafts that stood are computed, but for one that came last.
        num_known: tokens before the drafts. Returns the tokens that the draft model gained."""
        seq_id = sequence.seq_id
        chunk = self._chunks[seq_id]
        before = self._computed[seq_id]
        valid = num_known + min(num_accepted, chunk.num_drafts - 1)
        valid = min(valid, len(sequence.token_ids) - 1)
        self._allocator.commit(seq_id, sequence.token_ids[before:valid])
        self._computed[seq_id] = valid
        if self._slots[seq_id] > valid:
            pages = len(self._allocator.block_table(seq_id))
            self._allocator.truncate(seq_id, valid)
            self._slots[seq_id] = valid
            kept = len(self._allocator.block_table(seq_id))
            if kept < pages:
                self._shrunk.append(TableUpdate(seq_id, kept, ()))
        return valid - before

    def free(self, seq_id: int) -> None:
        """The sequence ended, or lost its memory."""
        if seq_id not in self._computed:
            return
        del self._computed[seq_id], self._slots[seq_id]
        self._allocator.free(seq_id)
        self._chunks.pop(seq_id, None)
        self._updates = [update for update in self._updates if update.seq_id != seq_id]
        if self._admitted.pop(seq_id, None) is None:
            self._freed.append(seq_id)

    def take_plan(self) -> DraftPlan:
        """What the draft model has to do in this step."""
        plan = DraftPlan(
            tuple(self._chunks.values()),
            tuple(self._updates),
            tuple(self._freed),
            self._copies.resolved(),
            tuple(self._admitted.values()),
        )
        self._updates, self._freed, self._admitted = [], [], {}
        self._copies = PageCopies()
        return plan

    def end_step(self) -> tuple[TableUpdate, ...]:
        """Tables as the step's rejected drafts left them."""
        shrunk, self._shrunk = tuple(self._shrunk), []
        self._chunks = {}
        return shrunk

    def _note(self, seq_id: int, first: int) -> None:
        table = self._allocator.block_table(seq_id)
        self._updates.append(TableUpdate(seq_id, first, tuple(table[first:])))

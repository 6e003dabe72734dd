"""An independent look at every slot of the pool, by the ledger's definitions and nothing else."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from simulated_run import SimulatedRun

from allocators.base import NULL_PAGE, Allocation, KVCacheAllocator, Usage
from harness.engine.engine import StepTimes
from harness.engine.memory_events import Extent
from harness.engine.plan import StepOutcome, TableUpdate
from harness.engine.request import Request
from harness.engine.scheduling.sequence import Sequence as EngineSequence
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.step_builder import ScheduledStep
from harness.measure.ledger import CLASSES


class Reach(NamedTuple):
    """How far a live sequence is computed, will be computed (F), and asked for room."""

    computed: int
    final: int
    asked: int


def classify(
    num_pages: int,
    page_size: int,
    tables: Mapping[tuple[int, int], Sequence[int]],
    reaches: Mapping[int, Reach],
    cached_pages: set[int],
    refusal: str,
    windows: tuple[int | None, ...] = (None,),
) -> Counter[str]:
    """Slots by class, each looked at by itself; `logical_tokens` and page counts beside them.
    tables: by group of layers and sequence."""
    counts: Counter[str] = Counter()
    counts["logical_tokens"] = sum(reaches[seq_id].computed for _, seq_id in tables)
    for page in range(num_pages):
        users = [
            (group, seq_id, index)
            for (group, seq_id), table in tables.items()
            for index, mapped in enumerate(table)
            if mapped == page
        ]
        assert len({group for group, _, _ in users}) <= 1, f"groups share page {page}"
        window = windows[users[0][0]] if users else None
        counts["mapped_pages"] += bool(users)
        counts["logical_pages"] += len(users)
        for offset in range(page_size):
            at = [(reaches[seq_id], index * page_size + offset) for _, seq_id, index in users]
            if window is not None and at:
                counts["dead_window"] += all(
                    position <= reach.computed - window for reach, position in at
                )
            if any(position < reach.computed for reach, position in at):
                counts["token"] += 1
            elif any(position < reach.final for reach, position in at):
                counts["reserved"] += 1
            elif any(position < reach.asked for reach, position in at):
                counts["over_reserved"] += 1
            elif users and all(
                len(tables[group, seq_id]) * page_size - page_size
                >= max(reaches[seq_id].asked, reaches[seq_id].final)
                for group, seq_id, _ in users
            ):
                counts["size_class"] += 1
            elif users:
                counts["tail"] += 1
            elif page in cached_pages:
                counts["cached"] += 1
            else:
                counts[{"": "free", "full": "free"}.get(refusal, refusal)] += 1
    counts["refused"] += counts["misaligned"]
    return counts


def num_free_runs(num_pages: int, tables: Iterable[Sequence[int]], length: int) -> int:
    """Disjoint runs of `length` consecutive pages that no table maps."""
    mapped = {page for table in tables for page in table}
    count = run = 0
    for page in range(num_pages):
        run = 0 if page in mapped else run + 1
        if run == length:
            count, run = count + 1, 0
    return count


class Auditor:
    """A recorder around a run's own that classifies every slot after every step.

    What was asked is what the allocator was told; how far a sequence is computed is what the
    plans say; cached pages come from the allocator's reuse index; and why the head was refused
    is found by asking a copy of the allocator again, without the watermark.
    """

    def __init__(self, run: SimulatedRun, final_len: Mapping[int, int] | None = None) -> None:
        self.kinds: list[str] = []
        self._states: list[tuple[Any, ...]] = []
        self._seen: dict[tuple[int, int], list[int]] = {}
        self._are_consecutive: list[bool] = []
        self._run = run
        self._final_len = final_len
        self._asked: dict[int, int] = {}
        self._computed: dict[int, int] = {}
        self._final: dict[int, int] = {}
        self._kind = ""
        self._listen(run.inner)
        add, memory = run.scheduler.add, run.scheduler._memory

        def added(group: SequenceGroup) -> None:
            for sequence in group.sequences:
                self._final[sequence.seq_id] = self._final_of(group.request)
            add(group)

        run.scheduler.add = added  # type: ignore[method-assign]
        explain = memory.explain_refusal

        def explained(group: SequenceGroup, is_idle: bool) -> object:
            self._kind = self._why_refused(group)
            return explain(group, is_idle)

        memory.explain_refusal = explained  # type: ignore[method-assign,assignment]

    def decided(
        self, step: ScheduledStep, usage: Usage, held: list[tuple[Extent, TableUpdate]]
    ) -> None:
        for seq_id, computed, _, _ in step.admitted:
            self._computed[seq_id] = computed
        for seq_id, computed in step.inherited:
            self._computed[seq_id] = computed
        for chunk in step.plan.chunks:
            wrong = step.rejected.get(chunk.seq_id, 0)
            self._computed[chunk.seq_id] = chunk.start + len(chunk.token_ids) - wrong
        self._audit(step)
        self._run.recorder.decided(step, usage, held)

    def done(self, outcome: StepOutcome, times: StepTimes) -> None:
        self._run.recorder.done(outcome, times)

    def finished(self, group: SequenceGroup) -> None:
        self._run.recorder.finished(group)

    def refused(self, request: Request, released_s: float, reason: str) -> None:
        self._run.recorder.refused(request, released_s, reason)

    def check(self) -> None:
        """Every entry of the ledger is what was counted, and its classes make up the pool."""
        setup, entries = self._run.setup, self._run.recorder.sink.entries
        assert len(entries) == len(self.kinds)
        for index, (entry, counts) in enumerate(zip(entries, self.counts(), strict=True)):
            found = {name: value for name, value in entry._asdict().items() if value}
            assert found == +counts, f"step {index}: the ledger says {found}, it is {+counts}"
            classes = sum(getattr(entry, name) for name in CLASSES)
            assert classes == setup.num_pages * setup.page_size

    def counts(self) -> list[Counter[str]]:
        """Slots by class after each step. That a strategy places contiguously is known at the end
        only: then all tables of two or more pages were of consecutive ones, at least ten."""
        setup = self._run.setup
        contiguous = len(self._are_consecutive) >= 10 and all(self._are_consecutive)
        counts = []
        for tables, reaches, cached, refusal in self._states:
            kind = refusal.kind if refusal else ""
            if kind == "unplaced":
                kind = "refused"
                if contiguous:
                    runs = num_free_runs(setup.num_pages, tables.values(), refusal.pages_each)
                    kind = "misaligned" if runs >= refusal.num_tables else "stranded"
            counts.append(
                classify(
                    setup.num_pages, setup.page_size, tables, reaches, cached, kind, setup.windows
                )
            )
        return counts

    def _note_placement(self, tables: Mapping[tuple[int, int], list[int]]) -> None:
        """Of every table that is new or changed, whether it is consecutive."""
        for key, table in tables.items():
            if len(table) > 1 and self._seen.get(key) != table:
                is_new = len(self._seen.get(key, ())) < 2
                pairs = [(a, b) for a, b in pairwise(table) if NULL_PAGE not in (a, b)]
                consecutive = all(b == a + 1 for a, b in pairs)
                if is_new or not consecutive:
                    self._are_consecutive.append(consecutive)
        self._seen = tables

    def _audit(self, step: ScheduledStep) -> None:
        inner = self._run.inner
        tables = {
            (number, seq_id): list(group.block_table(seq_id))
            for number, group in enumerate(inner.layer_groups)
            for seq_id in group.sequences
        }
        reaches = {}
        for seq_id in inner.sequences:
            computed = self._computed.get(seq_id, 0)
            if seq_id < 0:  # a held prefix is computed, and all that it will ever be
                computed = inner.sequences[seq_id].length
                self._final[seq_id] = self._asked[seq_id] = computed
            reaches[seq_id] = Reach(computed, self._final[seq_id], self._asked[seq_id])
        first = inner.layer_groups[0]
        first = getattr(first, "inner", first)
        cached = set(first.cached_pages()) if hasattr(first, "cached_pages") else set()
        kind = step.refusal.kind if step.refusal else ""
        if step.refusal and not step.preempted:
            assert kind == self._kind, f"refusal is {kind}, asking again says {self._kind}"
        self.kinds.append(kind)
        self._note_placement(tables)
        self._states.append((tables, reaches, cached, step.refusal))

    def _final_of(self, request: Request) -> int:
        if self._final_len is not None:
            return self._final_len[request.request_id]
        assert request.true_output_len is not None
        return len(request.prompt_ids) + request.true_output_len - 1

    def _listen(self, inner: KVCacheAllocator) -> None:
        allocate, fork, swap_in = inner.allocate, inner.fork, inner.swap_in

        def allocated(
            seq_id: int,
            token_ids: Sequence[int],
            max_len: int,
            expected_len: int,
            keep_free: int = 0,
        ) -> Allocation | None:
            self._asked[seq_id] = max(len(token_ids), expected_len)
            return allocate(seq_id, token_ids, max_len, expected_len, keep_free)

        def forked(
            parent_id: int, child_id: int, max_len: int, expected_len: int
        ) -> Allocation | None:
            self._asked[child_id] = max(inner.sequences[parent_id].length, expected_len)
            return fork(parent_id, child_id, max_len, expected_len)

        def swapped_in(seq_ids: Sequence[int]) -> Allocation | None:
            asked = {i: self._asked[i] for i in seq_ids}  # by default it allocates
            outcome = swap_in(seq_ids)
            self._asked |= asked
            return outcome

        inner.allocate = allocated  # type: ignore[method-assign]
        inner.fork = forked  # type: ignore[method-assign]
        inner.swap_in = swapped_in  # type: ignore[method-assign]

    def _why_refused(self, group: SequenceGroup) -> str:
        """Ask a copy of the allocator for what was refused, with all of the pool to be used."""
        inner = self._run.inner
        clone = copy.copy(inner)
        listening = ("allocate", "fork", "swap_in")
        kept = {k: v for k, v in inner.__dict__.items() if k not in listening}
        clone.__dict__ = copy.deepcopy(kept)
        usage = inner.usage()
        available = usage.free + usage.cached
        if group.saved is not None:
            placed, needed, own = *self._ask_swap_in(group, clone), 0
        else:
            placed, needed, own = self._ask_admission(group, clone)
        left = clone.usage().free + clone.usage().cached
        promised = sum(self._run.scheduler._memory.demand.promised.values())
        if needed + promised > available:
            return "full"
        return "withheld" if placed and left >= promised + own else "unplaced"

    def _ask_swap_in(self, group: SequenceGroup, clone: KVCacheAllocator) -> tuple[bool, int]:
        holders = [sequence for sequence in group.sequences if sequence.num_slots]
        available = clone.usage().free + clone.usage().cached
        needed = sys.maxsize  # only what grows is swapped, and that takes pages from anywhere
        if clone.swap_in([sequence.seq_id for sequence in holders]) is None:
            return False, needed
        for sequence in group.live if group.is_branched else ():
            missing = len(sequence.token_ids) - sequence.num_slots
            if missing > 0 and clone.append(sequence.seq_id, missing) is None:
                return False, needed
        return True, available - clone.usage().free - clone.usage().cached

    def _ask_admission(
        self, group: SequenceGroup, clone: KVCacheAllocator
    ) -> tuple[bool, int, int]:
        """Whether the clone places the group, the pages that takes before any round-up, and those
        of them that branches will take later."""
        memory, request = self._run.scheduler._memory, group.request
        expected = memory.demand.expected_len(group)
        tokens = group.live[0].token_ids
        siblings: Sequence[EngineSequence] = ()
        num_branches, own = 1, 0
        num_groups = len(clone.layer_groups)
        if not group.is_branched:
            tokens = tokens[: len(request.prompt_ids)]
            if clone.forks_share:
                whole = len(request.prompt_ids) // clone.page_size
                known = max(expected, group.longest_len + 1)
                own = num_groups * (len(group.live) - 1) * max(1, clone.pages_for(known) - whole)
            else:
                siblings, num_branches = group.live[1:], len(group.live)
                expected = max(expected, group.longest_len)
        needed = num_groups * num_branches * clone.pages_for(max(len(tokens), expected)) + own
        holder = memory.prefixes._holders.get(request.shared_prefix_id)
        seq_id = group.live[0].seq_id
        if holder is not None and request.shared_prefix_len < len(request.prompt_ids):
            prefix_len = request.shared_prefix_len
            needed -= num_groups * (prefix_len // clone.page_size)
            placed = clone.fork(holder, seq_id, request.max_len, expected) is not None
            placed = placed and clone.append(seq_id, len(tokens) - prefix_len) is not None
        else:
            placed = clone.allocate(seq_id, tokens, request.max_len, expected) is not None
        for sibling in siblings:
            placed = placed and (
                clone.allocate(sibling.seq_id, tokens, request.max_len, expected) is not None
            )
        return placed, needed, own

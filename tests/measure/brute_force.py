"""An independent look at every slot of the pool, by the ledger's definitions and nothing else."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulated_run import SimulatedRun

from allocators.base import Allocation, KVCacheAllocator, Usage
from harness.engine.memory_events import Extent
from harness.engine.plan import StepOutcome, TableUpdate
from harness.engine.request import Request
from harness.engine.sequence import SequenceGroup
from harness.engine.step_builder import ScheduledStep
from harness.measure.ledger import CLASSES


class Reach(NamedTuple):
    """How far a live sequence is computed, will be computed (F), and asked for room."""

    computed: int
    final: int
    asked: int


def classify(
    num_pages: int,
    page_size: int,
    tables: Mapping[int, Sequence[int]],
    reaches: Mapping[int, Reach],
    cached_pages: set[int],
    refusal: str,
) -> Counter[str]:
    """Slots by class, each looked at by itself; `logical_tokens` and page counts beside them."""
    counts: Counter[str] = Counter()
    for page in range(num_pages):
        users = [
            (seq_id, index)
            for seq_id, table in tables.items()
            for index, mapped in enumerate(table)
            if mapped == page
        ]
        counts["mapped_pages"] += bool(users)
        counts["logical_pages"] += len(users)
        for offset in range(page_size):
            at = [(reaches[seq_id], index * page_size + offset) for seq_id, index in users]
            counts["logical_tokens"] += sum(position < reach.computed for reach, position in at)
            if any(position < reach.computed for reach, position in at):
                counts["token"] += 1
            elif any(position < reach.final for reach, position in at):
                counts["reserved"] += 1
            elif any(position < reach.asked for reach, position in at):
                counts["over_reserved"] += 1
            elif users and all(
                len(tables[seq_id]) * page_size - page_size
                >= max(reaches[seq_id].asked, reaches[seq_id].final)
                for seq_id, _ in users
            ):
                counts["size_class"] += 1
            elif users:
                counts["tail"] += 1
            elif page in cached_pages:
                counts["cached"] += 1
            else:
                counts[{"": "free", "full": "free"}.get(refusal, refusal)] += 1
    return counts


class Auditor:
    """A recorder around a run's own that classifies every slot after every step.

    What was asked is what the allocator was told; how far a sequence is computed is what the
    plans say; cached pages come from the allocator's reuse index; and why the head was refused
    is found by asking a copy of the allocator again, without the watermark.
    """

    def __init__(self, run: SimulatedRun, final_len: Mapping[int, int] | None = None) -> None:
        self.counts: list[Counter[str]] = []
        self.kinds: list[str] = []
        self._run = run
        self._final_len = final_len
        self._asked: dict[int, int] = {}
        self._computed: dict[int, int] = {}
        self._final: dict[int, int] = {}
        self._kind = ""
        self._listen(run.inner)
        memory = run.scheduler._memory
        explain = memory.explain_refusal

        def explained(group: SequenceGroup, is_idle: bool) -> object:
            self._kind = self._why_refused(group)
            return explain(group, is_idle)

        memory.explain_refusal = explained  # type: ignore[method-assign,assignment]

    def step(
        self,
        step: ScheduledStep,
        outcome: StepOutcome,
        start_s: float,
        now_s: float,
        usage: Usage,
        held: list[tuple[Extent, TableUpdate]],
    ) -> None:
        for sequence, chunk in zip(step.sequences, step.plan.chunks, strict=True):
            self._computed[chunk.seq_id] = chunk.start + len(chunk.token_ids)
            self._final[chunk.seq_id] = self._final_of(sequence.group.request)
        self._audit(step)
        self._run.recorder.step(step, outcome, start_s, now_s, usage, held)

    def finished(self, group: SequenceGroup) -> None:
        self._run.recorder.finished(group)

    def refused(self, request: Request, released_s: float, reason: str) -> None:
        self._run.recorder.refused(request, released_s, reason)

    def check(self) -> None:
        """Every entry of the ledger is what was counted, and its classes make up the pool."""
        setup, entries = self._run.setup, self._run.recorder.entries
        assert len(entries) == len(self.counts)
        for index, (entry, counts) in enumerate(zip(entries, self.counts, strict=True)):
            found = {name: value for name, value in entry._asdict().items() if value}
            assert found == +counts, f"step {index}: the ledger says {found}, it is {+counts}"
            classes = sum(getattr(entry, name) for name in CLASSES)
            assert classes == setup.num_pages * setup.page_size

    def _audit(self, step: ScheduledStep) -> None:
        inner, setup = self._run.inner, self._run.setup
        tables = {seq_id: list(inner.block_table(seq_id)) for seq_id in inner.sequences}
        reaches = {}
        for seq_id in tables:
            computed = self._computed.get(seq_id, 0)
            if seq_id < 0:  # a held prefix is computed, and all that it will ever be
                computed = inner.sequences[seq_id].length
                self._final[seq_id] = self._asked[seq_id] = computed
            reaches[seq_id] = Reach(computed, self._final[seq_id], self._asked[seq_id])
        cached = set(inner.cached_pages()) if hasattr(inner, "cached_pages") else set()
        kind = step.refusal.kind if step.refusal else ""
        if step.refusal and not step.preempted:
            assert kind == self._kind, f"refusal is {kind}, asking again says {self._kind}"
        self.kinds.append(kind)
        self.counts.append(
            classify(setup.num_pages, setup.page_size, tables, reaches, cached, kind)
        )

    def _final_of(self, request: Request) -> int:
        if self._final_len is not None:
            return self._final_len[request.request_id]
        assert request.true_output_len is not None
        return len(request.prompt_ids) + request.true_output_len - 1

    def _listen(self, inner: KVCacheAllocator) -> None:
        allocate, fork = inner.allocate, inner.fork

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

        inner.allocate = allocated  # type: ignore[method-assign]
        inner.fork = forked  # type: ignore[method-assign]

    def _why_refused(self, group: SequenceGroup) -> str:
        """Ask a copy of the allocator for what was refused, with all of the pool to be used."""
        inner, memory = self._run.inner, self._run.scheduler._memory
        sequence = group.live[0]
        clone = copy.copy(inner)
        kept = {k: v for k, v in inner.__dict__.items() if k not in ("allocate", "fork")}
        clone.__dict__ = copy.deepcopy(kept)
        request = group.request
        asked = group.asked_len
        expected = memory._expected_len(group)
        holder = memory.prefixes._holders.get(request.shared_prefix_id)
        new_tokens = asked
        if holder is not None and request.shared_prefix_len < len(request.prompt_ids):
            prefix_len = request.shared_prefix_len
            placed = clone.fork(holder, sequence.seq_id, request.max_len, expected) is not None
            if placed:
                more = len(sequence.token_ids) - prefix_len
                placed = clone.append(sequence.seq_id, more) is not None
            new_tokens = asked - prefix_len // inner.page_size * inner.page_size
        else:
            given = clone.allocate(sequence.seq_id, sequence.token_ids, request.max_len, expected)
            placed = given is not None
        if placed:
            return "withheld"
        usage = inner.usage()
        is_enough = new_tokens <= (usage.free + usage.cached) * inner.page_size
        return "stranded" if is_enough and not usage.cached else "full"

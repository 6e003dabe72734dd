"""Decides which groups run in a step: order, token budget, preemption. Memory is asked for
through `GroupMemory`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from allocators.base import KVCacheAllocator
from harness.engine.memory_events import Refusal
from harness.engine.plan import StepOutcome
from harness.engine.scheduling import sequence as engine
from harness.engine.scheduling.chunking import add_chunks, add_sequence
from harness.engine.scheduling.draft_memory import DraftMemory
from harness.engine.scheduling.drafting import Drafter
from harness.engine.scheduling.group_memory import GroupMemory
from harness.engine.scheduling.held_prefixes import HeldPrefix
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.results import (
    fill_in_results,
    foresee_results,
    settle_drafts,
    take_results,
)
from harness.engine.scheduling.sequence import SequenceGroup
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.engine.scheduling.step_builder import ScheduledStep, StepBuilder
from harness.engine.scheduling.victims import VICTIM_POLICIES, VictimPolicy

Schedule = Literal["mixed_chunked", "mixed_unchunked", "prefill_first", "static"]
Preemption = Literal["recompute", "swap"]
BatchOrder = Literal["arrival", "length"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the scheduler is free to choose.

    schedule: `mixed_chunked` splits prompts over steps (Sarathi-Serve, section 4.2);
        `mixed_unchunked` computes a prompt whole, beside decodes (PagedAttention, section 6.1);
        `prefill_first` computes prompts in steps of their own as long as one can be admitted
        (vLLM before version 1); `static` lets nobody in until the last of a batch has ended
        (FasterTransformer); a member's memory goes back at its own end, and waits there.
    token_budget: tokens a step computes at most; where prompts are not split, the first of a
        step may exceed it, further ones must fit in what is left.
    watermark: share of the pool that an admission leaves available for the growth of running
        sequences. preemption: `swap` keeps what a victim has computed in `host_pages` pages of
        the host, and recomputes where they do not suffice.
    batch_size, batch_order: of `static`; the largest batch that fits where None; in order of
        arrival, or by length, which takes knowing the outputs (a bound).
    windows: tokens that the sliding window of each group of layers spans, None where it reads
        everything. vocab_size: of the model, for injected drafts.
    """

    schedule: Schedule = "mixed_chunked"
    token_budget: int = 512
    max_num_seqs: int = 256
    watermark: float = 0.01
    preemption: Preemption = "recompute"
    host_pages: int = 0
    victim: VictimPolicy = "latest"
    batch_size: int | None = None
    batch_order: BatchOrder = "arrival"
    windows: tuple[int | None, ...] = (None,)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    vocab_size: int = 2**31


class Scheduler:
    """First come, first served; what runs goes before what waits."""

    def __init__(
        self,
        allocator: KVCacheAllocator,
        config: SchedulerConfig,
        estimator: LengthEstimator,
        draft_allocator: KVCacheAllocator | None = None,
    ) -> None:
        self._allocator = allocator
        self._config = config
        self._slides = any(window is not None for window in config.windows)
        self._splits_prompts = config.schedule in ("mixed_chunked", "static")
        self._memory = GroupMemory(
            allocator,
            estimator,
            watermark_pages=int(config.watermark * allocator.pool.num_pages),
            host_pages=config.host_pages if config.preemption == "swap" else 0,
            windows=config.windows,
        )
        self._draft_memory = None if draft_allocator is None else DraftMemory(draft_allocator)
        self._drafter = (
            None
            if config.speculation.method == "none"
            else Drafter(config.speculation, self._memory, config.vocab_size, self._draft_memory)
        )
        self._commit = allocator.commit if allocator.commits else None
        self._choose_victim = VICTIM_POLICIES[config.victim]
        self._waiting: deque[SequenceGroup] = deque()
        self._swapped: deque[SequenceGroup] = deque()
        self._running: list[SequenceGroup] = []
        self._num_seqs = 0
        self._beams_to_move: list[SequenceGroup] = []
        self._batch_refusal: Refusal | None = None

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._swapped) + len(self._running)

    @property
    def running(self) -> tuple[SequenceGroup, ...]:
        """Groups that hold memory, in order of admission."""
        return tuple(self._running)

    def add(self, group: SequenceGroup) -> None:
        """Queue a group behind all others."""
        self._waiting.append(group)

    def schedule(self, now_s: float) -> ScheduledStep:
        """Plan one step."""
        step = StepBuilder(self._config.token_budget)
        memory = self._memory
        memory.host.begin_step()
        if self._beams_to_move:
            self._move_beams(step, now_s)
        match self._config.schedule:
            case "prefill_first":
                before = tuple(self._running)
                if not self._swapped:
                    self._admit(step, now_s)
                if step.num_prefills == 0:
                    self._continue(before, step, now_s)
                    if self._swapped and not step.preempted:
                        self._admit(step, now_s, swapped_only=True)
            case "static":
                self._continue(tuple(self._running), step, now_s)
                if not self._running:
                    self._form_batch(step, now_s)
                elif step.refusal is None:
                    step.refusal = self._batch_refusal
            case _:
                self._continue(tuple(self._running), step, now_s)
                if not step.preempted:
                    self._admit(step, now_s)
        if not step.chunks and not self._running:
            self._admit(step, now_s)
        elif step.preempted:
            step.refusal = Refusal(step.preempted[-1].request.request_id, "full")
        scheduled = step.finish(
            tuple(memory.freed_seq_ids),
            len(self._running),
            len(self._waiting) + len(self._swapped),
            self._draft_memory.take_plan() if self._draft_memory and step.chunks else None,
        )
        if not scheduled.is_empty:  # what is not carried out leaves its frees to the next step
            memory.freed_seq_ids.clear()
        return scheduled

    def commit(self, step: ScheduledStep, outcome: StepOutcome, now_s: float) -> None:
        """Take the results in: tokens are computed, publishable, and chosen ones appended."""
        if self._draft_memory is not None:
            lengths = [len(sequence.token_ids) for sequence in step.sequences]
        self._beams_to_move += take_results(step, outcome, now_s, self._commit, self._memory.shrink)
        if self._draft_memory is not None:
            step.draft = settle_drafts(self._draft_memory, step, outcome, lengths)
        if self._slides:
            for sequence in step.sequences:
                step.shrunk += self._memory.release_windows(sequence)

    def foresee(self, step: ScheduledStep) -> StepOutcome | None:
        """What decisions need to know of a step's outcome, where that is known before the step is
        done; for `commit`, with NaN for the time, and `fill_in` once it is done."""
        if self._drafter is not None:
            return None
        return foresee_results(step, ids_matter=self._commit is not None)

    def fill_in(
        self,
        step: ScheduledStep,
        outcome: StepOutcome,
        now_s: float,
        ended: Sequence[SequenceGroup],
    ) -> None:
        """The tokens of a step that was committed as foreseen are in; `ended` by it."""
        fill_in_results(step, outcome, now_s)
        for group in ended:
            group.finish_s = now_s

    def retire(self, step: ScheduledStep, now_s: float) -> list[SequenceGroup]:
        """Give back the memory of what has ended; return the groups that have ended whole."""
        if self._allocator.shares_declared_prefix:
            for sequence in step.sequences:
                self._memory.prefixes.hold(sequence)
        ended: list[SequenceGroup] = []
        for sequence in step.sequences:
            group = sequence.group
            if sequence.finished or not group.is_branched:
                self._retire_branches(group, ended)
        if ended:
            for group in ended:
                group.finish_s = now_s
                self._forget_drafts(group.sequences)
            self._running = [group for group in self._running if group.is_running]
        return ended

    def take_held(self) -> list[HeldPrefix]:
        """Prefixes held for reuse since the last call: live memory that never runs."""
        return self._memory.prefixes.take_new()

    def _retire_branches(self, group: SequenceGroup, ended: list[SequenceGroup]) -> None:
        if not group.is_running or not any(sequence.finished for sequence in group.live):
            return
        done = [sequence for sequence in group.live if sequence.finished]
        group.live = [sequence for sequence in group.live if not sequence.finished]
        if not group.live:
            self._num_seqs -= len(group.sequences)
            self._memory.free(group)
            ended.append(group)
            group.is_running = False
        elif group.is_branched:
            for sequence in done:
                self._memory.free_sequence(sequence)
            self._forget_drafts(done)

    def _continue(self, groups: Sequence[SequenceGroup], step: StepBuilder, now_s: float) -> None:
        """Let these running groups go on, as far as the budget goes."""
        memory, drafter, splits = self._memory, self._drafter, self._splits_prompts
        for group in groups:
            if step.budget <= 0:
                return
            sequence = group.only
            if sequence is not None and drafter is None and group.is_running:
                missing = len(sequence.token_ids) - sequence.num_slots
                if missing <= 0 or memory.extend(sequence, missing, step):
                    add_sequence(sequence, step, splits)
                    continue
            if group.is_running and self._make_room(group, step, now_s):
                add_chunks(group, step, splits, drafter)

    def _make_room(self, group: SequenceGroup, step: StepBuilder, now_s: float) -> bool:
        """Room for the group's tokens, at the cost of others; False if it went itself."""
        while not self._memory.grow(group, step):
            others = self._running if len(self._running) > 1 else ()
            if self._memory.drop_prefix([other.request for other in others]):
                continue
            # a reservation that cannot be extended in place gains nothing from others' pages
            grows = self._allocator.grows_on_demand
            victim = self._choose_victim(self._running) if grows else group
            self._preempt(victim, step, now_s)
            if victim is group:
                return False
        return True

    def _admit(self, step: StepBuilder, now_s: float, swapped_only: bool = False) -> None:
        """Swapped groups first, then the queue, as far as memory and budget go. Whoever is
        swapped in must not be preempted in the same step: its pages are yet to be restored."""
        is_batch = self._config.schedule == "static"
        while (step.budget > 0 or is_batch) and self._may_admit():
            if swapped_only and not self._swapped:
                return
            queue = self._swapped or self._waiting
            group = queue[0]
            if self._num_seqs + len(group.sequences) > self._config.max_num_seqs:
                return
            if not self._splits_prompts and not self._fits_whole(group, step):
                return
            if not self._place(group, step):
                if not self._give_up(group, step):
                    return
                continue
            queue.popleft()
            self._running.append(group)
            self._num_seqs += len(group.sequences)
            group.is_running = True
            if group.admissions == 0:
                group.first_scheduled_s = now_s
            group.admissions += 1
            if step.budget > 0:
                add_chunks(group, step, self._splits_prompts)

    def _may_admit(self) -> bool:
        limit = self._config.batch_size
        if limit is not None and len(self._running) >= limit:
            return False
        return bool(self._swapped or self._waiting)

    def _fits_whole(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Whether an unchunked prompt may join; one a step always may, or decodes could hold
        it back until they are few."""
        if group.saved is not None:
            return True
        num_tokens = group.longest_len if group.is_branched else group.num_prompt_tokens
        return num_tokens <= step.budget or step.num_prefills == 0

    def _place(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """Memory for the head of the queue, at the cost of held prefixes but of nobody else."""
        memory, is_idle = self._memory, not self._running
        if not is_idle and memory.refusal.holds_for(group):
            return False
        get = memory.admit if group.saved is None else memory.swap_in
        while not get(group, step, is_idle):
            users = [] if is_idle else [*(g.request for g in self._running), group.request]
            if not memory.drop_prefix(users):
                if not is_idle and group.saved is None:
                    memory.refusal.note(group)
                return False
        return True

    def _give_up(self, group: SequenceGroup, step: StepBuilder) -> bool:
        """What becomes of a refused head: True where another takes its place at once."""
        is_idle = not self._running
        if group.saved is not None:
            if is_idle:  # what was shared when it left takes more room than the pool has
                self._swapped.popleft()
                self._memory.discard_saved(group)
                self._requeue(group)
                return True
        elif self._memory.is_unplaceable(group, is_idle):
            step.unplaceable.append(self._waiting.popleft())
            return True
        group.waits_for_room = True
        step.refusal = self._memory.explain_refusal(group, is_idle)
        return False

    def _preempt(self, victim: SequenceGroup, step: StepBuilder, now_s: float) -> None:
        self._running.remove(victim)
        self._num_seqs -= len(victim.sequences)
        victim.is_running = False
        victim.num_preemptions += 1
        if victim.preempted_s != victim.preempted_s:
            victim.preempted_s = now_s
        self._forget_drafts(victim.sequences)
        never_seen = step.withdraw(victim)
        step.preempted.append(victim)
        swaps = (
            self._config.preemption == "swap"
            and self._allocator.grows_on_demand  # else it needs a longer reservation, not this one
            and not victim.parents  # else its tables lag behind its tokens
        )
        if swaps and self._memory.swap_out(victim, step):
            victim.num_swaps += 1
            self._swapped.appendleft(victim)
            self._swapped = _by_arrival(self._swapped)
        else:
            self._memory.free(victim)
            self._requeue(victim)
        self._memory.forget_freed(never_seen)

    def _forget_drafts(self, sequences: Sequence[engine.Sequence]) -> None:
        if self._drafter is not None:
            for each in sequences:
                self._drafter.forget(each)

    def _requeue(self, group: SequenceGroup) -> None:
        """Back to the head of the queue, all to be computed again."""
        group.is_branched = len(group.live) == 1
        group.parents.clear()
        self._waiting.appendleft(group)
        self._waiting = _by_arrival(self._waiting)

    def _form_batch(self, step: StepBuilder, now_s: float) -> None:
        """The next static batch; why it is no larger stands for all of its steps."""
        if self._config.batch_order == "length":
            self._waiting = deque(sorted(self._waiting, key=_known_len))
        self._admit(step, now_s)
        self._batch_refusal = step.refusal

    def _move_beams(self, step: StepBuilder, now_s: float) -> None:
        """Tell the allocator about the last beam steps: what is pruned is free from here on."""
        moving, self._beams_to_move = self._beams_to_move, []
        for group in moving:
            if group.is_running and group.parents and not self._memory.rebranch(group, step):
                self._preempt(group, step, now_s)


def _by_arrival(queue: deque[SequenceGroup]) -> deque[SequenceGroup]:
    """The queue in order of arrival, when its new head may be out of place."""
    if len(queue) > 1 and queue[0].order > queue[1].order:
        return deque(sorted(queue, key=lambda group: group.order))
    return queue


def _known_len(group: SequenceGroup) -> int:
    output_len = group.request.true_output_len or group.request.max_tokens
    return group.num_prompt_tokens + output_len

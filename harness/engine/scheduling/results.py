"""Takes what a step brought into the sequences: progress, tokens, beam steps."""

from __future__ import annotations

import collections.abc
import math
from collections.abc import Callable, Iterator
from itertools import repeat

from harness.engine.plan import PENDING_TOKEN, Chunk, StepOutcome, TableUpdate
from harness.engine.scheduling.beam_search import Candidates
from harness.engine.scheduling.draft_memory import DraftMemory
from harness.engine.scheduling.sequence import Sequence, SequenceGroup
from harness.engine.scheduling.step_builder import DraftEvents, ScheduledStep

Commit = Callable[[int, collections.abc.Sequence[int]], None]
Shrink = Callable[[Sequence], list[TableUpdate]]


def take_results(
    step: ScheduledStep,
    outcome: StepOutcome,
    now_s: float,
    commit: Commit | None,
    shrink: Shrink,
) -> list[SequenceGroup]:
    """Bring every sequence of the step up to date; `commit` is told what is computed, if
    anybody wants to know, `shrink` up to where drafts stand.

    Returns the groups whose beams moved, with `parents` saying how.
    """
    chosen = zip(outcome.token_ids, outcome.margins or repeat(0.0), strict=False)
    candidates = iter(outcome.candidates)
    accepted = iter(outcome.num_accepted)
    moved: list[SequenceGroup] = []
    for sequence, chunk in zip(step.sequences, step.plan.chunks, strict=True):
        # unpacked at once: this runs for every token, and attributes of a tuple are slow
        seq_id, start, token_ids, draws, _, num_candidates, num_drafts, _ = chunk
        if num_drafts:
            _take_drafts(step, sequence, chunk, next(accepted), chosen, now_s)
            if commit is not None:
                commit(seq_id, sequence.token_ids[start : sequence.num_computed_tokens])
            if sequence.num_slots > sequence.num_computed_tokens:
                step.shrunk += shrink(sequence)
            continue
        end = sequence.num_computed_tokens = start + len(token_ids)
        furthest = sequence.furthest_computed
        if start >= furthest:
            sequence.furthest_computed = end
        else:
            sequence.recomputed_tokens += min(end, furthest) - start
            sequence.furthest_computed = max(end, furthest)
        if commit is not None:
            commit(seq_id, token_ids)
        if len(draws) == 1:
            chosen_id, margin = next(chosen)
            sequence.accept(chosen_id, margin, now_s)
            if sequence.group.num_preemptions:
                sequence.group.resume(now_s)
        elif draws:
            for sample in sequence.group.sequences:
                chosen_id, margin = next(chosen)
                sample.accept(chosen_id, margin, now_s)
            sequence.group.resume(now_s)
        elif num_candidates and _step_beams(sequence, candidates, now_s):
            moved.append(sequence.group)
    return moved


def foresee_results(step: ScheduledStep, ids_matter: bool) -> StepOutcome | None:
    """The outcome of a step as far as decisions depend on it, or None where they depend on what
    the device is yet to say: beams, drafts, samples that branch, ends of sequence, and tokens
    that are not given beforehand where `ids_matter`. PENDING_TOKEN stands for every draw."""
    num_draws = 0
    for sequence, chunk in zip(step.sequences, step.plan.chunks, strict=True):
        _, _, _, draws, _, num_candidates, num_drafts, _ = chunk
        if num_candidates or num_drafts or len(draws) > 1:
            return None
        if draws:
            num_draws += 1
            if not sequence.has_known_ids and (ids_matter or sequence.final_len is None):
                return None
    return StepOutcome((PENDING_TOKEN,) * num_draws, (), math.nan)


def fill_in_results(step: ScheduledStep, outcome: StepOutcome, now_s: float) -> None:
    """What was foreseen of `step` has come: its tokens, and when."""
    chosen = zip(outcome.token_ids, outcome.margins or repeat(0.0), strict=False)
    for sequence, chunk in zip(step.sequences, step.plan.chunks, strict=True):
        if chunk[3]:
            chosen_id, margin = next(chosen)
            sequence.fill_in(chosen_id, margin, now_s)
            sequence.group.resumed(now_s)


def settle_drafts(
    memory: DraftMemory, step: ScheduledStep, outcome: StepOutcome, lengths: list[int]
) -> DraftEvents:
    """Bring the draft model's memory up to date. lengths: the sequences' before the step."""
    accepted = iter(outcome.num_accepted)
    computed = [
        (chunk.seq_id, memory.settle(sequence, length, next(accepted)))
        for sequence, chunk, length in zip(step.sequences, step.plan.chunks, lengths, strict=True)
        if chunk.num_drafts
    ]
    return DraftEvents(tuple(computed), memory.end_step(), memory.usage())


def _take_drafts(
    step: ScheduledStep,
    sequence: Sequence,
    chunk: Chunk,
    num_accepted: int,
    chosen: Iterator[tuple[int, float]],
    now_s: float,
) -> None:
    """The drafts that stood and one token more; what follows an end-of-sequence is dropped."""
    for chosen_id, margin in [next(chosen) for _ in range(num_accepted + 1)]:
        if not sequence.finished:
            sequence.accept(chosen_id, margin, now_s)
    sequence.num_drafted += chunk.num_drafts
    sequence.num_accepted += num_accepted
    sequence.num_computed_tokens = len(sequence.token_ids) - 1
    sequence.furthest_computed = max(sequence.furthest_computed, sequence.num_computed_tokens)
    num_kept = sequence.num_computed_tokens - chunk.start
    if num_kept < len(chunk.token_ids):
        step.rejected[chunk.seq_id] = len(chunk.token_ids) - num_kept
    sequence.group.resume(now_s)


def _step_beams(sequence: Sequence, candidates: Iterator[Candidates], now_s: float) -> bool:
    """A beam step, once the candidates of the group's last beam are in; True if beams moved."""
    group = sequence.group
    group.candidates.append(next(candidates))
    if group.is_branched and sequence is not group.live[-1]:
        return False
    assert group.search is not None
    decided = group.search.step(group.candidates)
    group.candidates.clear()
    group.resume(now_s)
    if decided.done:
        group.take_hypotheses(now_s)
        return False
    group.move_tokens(decided, now_s)
    if not group.is_branched:  # the others are yet to be forked from the prompt
        return False
    ids = [beam.seq_id for beam in group.sequences]
    group.parents = {
        ids[child]: ids[parent] for child, parent in enumerate(decided.parents) if child != parent
    }
    return bool(group.parents)

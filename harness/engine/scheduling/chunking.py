"""What a group computes in a step."""

from __future__ import annotations

from harness.engine.plan import Chunk
from harness.engine.request import SamplingParams
from harness.engine.scheduling.drafting import Drafter
from harness.engine.scheduling.sequence import Sequence, SequenceGroup
from harness.engine.scheduling.step_builder import StepBuilder


def add_chunks(
    group: SequenceGroup,
    step: StepBuilder,
    splits_prompts: bool,
    drafter: Drafter | None = None,
) -> None:
    """Add the group's tokens to the step: what is not computed yet, within the budget, and
    drafts of what `drafter` expects to follow."""
    if group.only is not None:
        add_sequence(group.only, step, splits_prompts, drafter)
    elif group.is_branched:
        _add_branches(group, step, drafter)
    else:
        _add_prompt(group, step, splits_prompts)


def add_sequence(
    sequence: Sequence, step: StepBuilder, splits_prompts: bool, drafter: Drafter | None = None
) -> None:
    """Add what a request's only sequence has not computed yet."""
    start = sequence.num_computed_tokens
    known = sequence.token_ids
    count = len(known) - start
    draws: tuple[SamplingParams, ...] = sequence.draws
    position = len(sequence.token_s)
    if count == 1:
        if drafter is not None and position:
            _add_decode(sequence, step, drafter)
            return
        step.add_decode(sequence, start, known[-1], draws, position)
        return
    if splits_prompts and count > step.budget:
        count = step.budget
        draws = ()
    token_ids = known[start : start + count]
    step.add_chunk(sequence, Chunk(sequence.seq_id, start, token_ids, draws, position))


def _add_prompt(group: SequenceGroup, step: StepBuilder, splits_prompts: bool) -> None:
    """The prompt of a group yet to branch; the first tokens of all branches come of it."""
    carrier = group.carrier
    start = carrier.num_computed_tokens
    token_ids = carrier.token_ids[start : group.num_prompt_tokens]
    if not token_ids:  # it was swapped out between its prompt and its branches
        return
    is_cut = splits_prompts and len(token_ids) > step.budget
    if is_cut:
        token_ids = token_ids[: step.budget]
    draws: tuple[SamplingParams, ...] = ()
    num_candidates = 0
    if not is_cut and not carrier.token_s:  # else the branches have their first tokens already
        if group.search is None:
            draws = tuple(sequence.draws[0] for sequence in group.sequences)
        else:
            num_candidates = group.search.num_candidates
    step.add_chunk(carrier, Chunk(carrier.seq_id, start, token_ids, draws, 0, num_candidates))


def _add_decode(
    sequence: Sequence, step: StepBuilder, drafter: Drafter, num_others: int = 0
) -> None:
    """The last token, and drafts after it, leaving budget for a token of each of the others."""
    drafts = drafter.propose(sequence, step.budget - num_others, step)
    position = len(sequence.token_s)
    step.add_chunk(
        sequence,
        Chunk(
            sequence.seq_id,
            sequence.num_computed_tokens,
            [sequence.token_ids[-1], *drafts],
            sequence.draws,
            position,
            num_drafts=len(drafts),
            true_ids=sequence.known_ids(position, len(drafts) + 1) or (),
        ),
    )


def _add_branches(group: SequenceGroup, step: StepBuilder, drafter: Drafter | None) -> None:
    """One token of each branch, all in one step; before that, what each has to catch up."""
    missing = [len(s.token_ids) - s.num_computed_tokens for s in group.live]
    all_draw = sum(missing) <= step.budget
    if drafter is not None and group.search is None and sum(missing) == len(missing):
        for index, sequence in enumerate(group.live if all_draw else (), start=1):
            _add_decode(sequence, step, drafter, len(group.live) - index)
        return
    for sequence, count in zip(group.live, missing, strict=True):
        taken = count if all_draw else min(count - 1, step.budget)
        if taken == 0:
            continue
        start = sequence.num_computed_tokens
        draws: tuple[SamplingParams, ...] = ()
        num_candidates = 0
        if all_draw and group.search is None:
            draws = sequence.draws
        elif all_draw and group.search is not None:
            num_candidates = group.search.num_candidates
        step.add_chunk(
            sequence,
            Chunk(
                sequence.seq_id,
                start,
                sequence.token_ids[start : start + taken],
                draws,
                len(sequence.token_s),
                num_candidates,
            ),
        )

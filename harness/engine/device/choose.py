"""From a step's logits to what its chunks asked for: tokens, verified drafts, candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.engine.device.sampler import sample, sample_rows
from harness.engine.device.staging import upload
from harness.engine.device.verify import verify
from harness.engine.plan import Chunk
from harness.engine.scheduling.beam_search import Candidates


class Chosen(NamedTuple):
    """What a step's logits became, in plan order; see `StepOutcome`."""

    token_ids: list[int]
    margins: list[float]
    candidates: list[Candidates]
    num_accepted: list[int]


def draws_one_each(chunks: Sequence[Chunk]) -> bool:
    """Every chunk that asks for anything asks for one plain draw."""
    return all(
        len(chunk.draws) <= 1 and not chunk.num_candidates and not chunk.num_drafts
        for chunk in chunks
    )


def choose(
    logits: Tensor, chunks: Sequence[Chunk], draft_probs: Mapping[int, Tensor] | None = None
) -> Chosen:
    """Answer `chunks`; `logits` (rows, vocabulary) has rows for those that ask for anything, a
    row and one more for each of its drafts.

    draft_probs: by sequence, the distributions that its drafts were drawn from, if they were.
    """
    asking = [chunk for chunk in chunks if chunk.draws or chunk.num_candidates]
    if any(chunk.num_drafts for chunk in asking):
        return _verified(logits, asking, draft_probs or {})
    if all(len(chunk.draws) == 1 for chunk in asking):
        sampled = sample(
            logits,
            [chunk.draws[0] for chunk in asking],
            [chunk.output_position for chunk in asking],
        )
        return Chosen(sampled.token_ids, sampled.margins, [], [])
    return _branching(logits, asking)


def _branching(logits: Tensor, asking: Sequence[Chunk]) -> Chosen:
    """Prompts that branch into several samples, and beams, beside plain draws. The host waits for
    the device once."""
    draws = [(row, chunk, draw) for row, chunk in enumerate(asking) for draw in chunk.draws]
    beams = [row for row, chunk in enumerate(asking) if chunk.num_candidates]
    draw_rows, beam_rows = upload(
        (np.array([row for row, _, _ in draws], np.int64), np.array(beams, np.int64)),
        logits.device,
    )
    parts: list[Tensor] = []
    if draws:
        parts += sample_rows(
            logits[draw_rows],
            [draw for _, _, draw in draws],
            [chunk.output_position for _, chunk, _ in draws],
        )
    if beams:
        most = min(max(asking[row].num_candidates for row in beams), logits.shape[-1])
        log_probs = torch.log_softmax(logits[beam_rows].float(), dim=-1)
        parts += (part.flatten() for part in log_probs.topk(most, dim=-1))
    if not parts:
        return Chosen([], [], [], [])
    numbers = torch.cat([part.double() for part in parts]).tolist()  # ids and float32: all exact
    tokens, margins, best = numbers[: len(draws)], numbers[len(draws) :], numbers[2 * len(draws) :]
    return Chosen(
        [int(token) for token in tokens],
        margins[: len(draws)],
        _candidates(best, [asking[row].num_candidates for row in beams]),
        [],
    )


def _candidates(numbers: Sequence[float], counts: Sequence[int]) -> list[Candidates]:
    """The best next tokens of each beam, with float32 log-probabilities, as many as it wants:
    `numbers` are the log-probabilities of all beams, then the tokens."""
    found = []
    half = len(numbers) // 2
    for index, count in enumerate(counts):
        begin = index * (half // len(counts))
        end = begin + min(count, half // len(counts))
        tokens = [int(token) for token in numbers[half + begin : half + end]]
        found.append(Candidates(tokens, list(numbers[begin:end])))
    return found


def _verified(logits: Tensor, asking: Sequence[Chunk], probs: Mapping[int, Tensor]) -> Chosen:
    """Drafts are accepted or not, and prompts and plain decodes choose beside them."""
    counts = [1 + chunk.num_drafts for chunk in asking]
    plain = [chunk for chunk in asking if len(chunk.draws) != 1]
    if plain:  # branching groups: their rows apart, then everything in plan order again
        return _in_order(logits, asking, counts, probs)
    verified = verify(
        logits,
        [_drafts(chunk) for chunk in asking],
        [probs.get(chunk.seq_id) for chunk in asking],
        [chunk.draws[0] for chunk in asking],
        [chunk.output_position for chunk in asking],
    )
    token_ids: list[int] = []
    margins: list[float] = []
    accepted: list[int] = []
    first = 0
    for chunk, count, own in zip(asking, counts, verified, strict=True):
        if chunk.true_ids:
            num_kept = _common_prefix_len(_drafts(chunk), chunk.true_ids)
            rows = logits[first : first + num_kept + 1]
            given = sample(
                rows,
                chunk.draws * len(rows),
                range(chunk.output_position, chunk.output_position + len(rows)),
            )
            tokens, gaps = given.token_ids, given.margins
        else:
            num_kept, tokens, gaps = own.num_accepted, list(own.token_ids), list(own.margins)
        token_ids += tokens
        margins += gaps
        if chunk.num_drafts:
            accepted.append(num_kept)
        first += count
    return Chosen(token_ids, margins, [], accepted)


def _in_order(
    logits: Tensor, asking: Sequence[Chunk], counts: Sequence[int], probs: Mapping[int, Tensor]
) -> Chosen:
    """One chunk after the other, where drafts and branching prompts meet in a step."""
    together = Chosen([], [], [], [])
    first = 0
    for chunk, count in zip(asking, counts, strict=True):
        rows = logits[first : first + count]
        part = _verified(rows, [chunk], probs) if chunk.num_drafts else _branching(rows, [chunk])
        for every, some in zip(together, part, strict=True):
            every += some  # type: ignore[operator]
        first += count
    return together


def _drafts(chunk: Chunk) -> Sequence[int]:
    return chunk.token_ids[len(chunk.token_ids) - chunk.num_drafts :]


def _common_prefix_len(drafts: Sequence[int], true_ids: Sequence[int]) -> int:
    for index, (draft, true_id) in enumerate(zip(drafts, true_ids, strict=False)):
        if draft != true_id:
            return index
    return min(len(drafts), len(true_ids))

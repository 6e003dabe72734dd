"""Checks drafted tokens against the model, without loss.

Speculative sampling (Leviathan et al., 2023, section 2.3; Chen et al., 2023, algorithm 2):
whatever proposes the drafts, the tokens that come out are distributed as if the model had
drawn each of them itself, under the request's own temperature, top_k and top_p.

Random numbers are hashes of (seed, output position, purpose), so nothing depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.engine.device.sampler import sample, uniform
from harness.engine.request import SamplingParams

T = TypeVar("T")

# Purposes of random numbers, besides the sampler's own. They are independent of one another:
# a draft must not know whether it will be accepted.
_DRAW_DRAFT, _ACCEPT, _RESAMPLE = 1, 2, 3


class Verified(NamedTuple):
    """What one chunk emits: its accepted drafts, then one token that the model adds.

    margins: best less second-best logit of the model at each emitted position.
    """

    token_ids: tuple[int, ...]
    num_accepted: int
    margins: tuple[float, ...]


class Drafted(NamedTuple):
    """One token a row, and the distribution (rows, vocabulary; float64) it was drawn from."""

    token_ids: list[int]
    probs: Tensor


def verify(
    logits: Tensor,
    draft_ids: Sequence[Sequence[int]],
    draft_probs: Sequence[Tensor | None],
    params: Sequence[SamplingParams],
    output_positions: Sequence[int],
) -> list[Verified]:
    """Accept the longest run of drafts that may stand, and add one token, for each chunk.

    Chunk i owns the next len(draft_ids[i]) + 1 rows of `logits` (rows, vocabulary); its row j
    predicts the token after draft j - 1. output_positions[i] is the position in the output of
    its first row's token.

    draft_probs[i] (drafts, vocabulary) is the distribution that draft_ids[i] were drawn from,
    as `draw_draft` gives it. None says that they were not drawn at random (n-grams, a greedy
    draft model): then the chunk emits exactly the tokens that `sample` would have given one at
    a time, greedy or not. With probabilities and a temperature above 0, only the distribution
    is the same. `logits` is written to, and restored.
    """
    rows = [len(ids) + 1 for ids in draft_ids]
    starts = [0, *accumulate(rows)]
    if starts[-1] != logits.shape[0]:
        raise ValueError(
            f"{logits.shape[0]} rows of logits for {len(draft_ids)} chunks whose drafts "
            f"need {starts[-1]}"
        )
    spans = list(pairwise(starts))
    drawn = [
        i
        for i, (ids, probs, p) in enumerate(zip(draft_ids, draft_probs, params, strict=True))
        if ids and probs is not None and p.temperature > 0
    ]
    row_params = _row_params(rows, params, set(drawn))
    own = sample(logits, row_params, _row_positions(output_positions, rows))
    chosen = [own.token_ids[start:end] for start, end in spans]
    accepted = [_common_prefix(*pair) for pair in zip(draft_ids, chosen, strict=True)]
    for i, (count, token) in zip(
        drawn,
        _speculative_sampling(
            [logits[slice(*spans[i])][:-1] for i in drawn],
            [draft_ids[i] for i in drawn],
            [p for i in drawn if (p := draft_probs[i]) is not None],
            [params[i] for i in drawn],
            [output_positions[i] for i in drawn],
        ),
        strict=True,
    ):
        accepted[i] = count
        if token is not None:
            chosen[i][count] = token
    return [
        Verified((*ids[:n], tokens[n]), n, tuple(own.margins[start : start + n + 1]))
        for ids, tokens, n, (start, _) in zip(draft_ids, chosen, accepted, spans, strict=True)
    ]


def draw_draft(
    logits: Tensor, params: Sequence[SamplingParams], output_positions: Sequence[int]
) -> Drafted:
    """Draw a draft for each row of a draft model's `logits` (rows, vocabulary).

    The request's filters apply to the draft model too: what the model can never emit is not
    worth drafting. The numbers are independent of those that `verify` uses.
    """
    probs = filtered_probs(logits, params)
    uniforms = _uniforms(_DRAW_DRAFT, [p.seed for p in params], output_positions)
    return Drafted(_invert(probs, uniforms), probs)


def filtered_probs(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The distribution that `sample` draws from: (rows, vocabulary), float64, rows sum to 1.

    Temperature 0 is all of the mass on the first best token.
    """
    device, vocab = logits.device, logits.shape[-1]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

    scaled = logits.double() / column([p.temperature or 1.0 for p in params])
    ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=device)
    kept = column([(p.top_k or vocab) if p.temperature > 0 else 1 for p in params])
    probs = ordered.masked_fill_(rank >= kept, float("-inf")).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    probs.masked_fill_((before >= column([p.top_p for p in params])) & (rank > 0), 0.0)
    probs /= probs.sum(dim=-1, keepdim=True)
    return torch.empty_like(probs).scatter_(-1, index, probs)


def _row_params(
    rows: Sequence[int], params: Sequence[SamplingParams], drawn: set[int]
) -> list[SamplingParams]:
    """Parameters of `sample` for every row of every chunk.

    Where drafts were drawn at random, only the last row's token can be emitted as it is; the
    other rows are there for their margins, for which greedy is the cheapest.
    """
    greedy = SamplingParams()
    return [
        own if row == count - 1 or i not in drawn else greedy
        for i, (count, own) in enumerate(zip(rows, params, strict=True))
        for row in range(count)
    ]


def _row_positions(first_positions: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Output positions of each chunk's rows, one after another."""
    pairs = zip(first_positions, counts, strict=True)
    return [position for first, count in pairs for position in range(first, first + count)]


def _per_row(values: Sequence[T], counts: Sequence[int]) -> list[T]:
    return list(chain.from_iterable(map(repeat, values, counts)))


def _common_prefix(drafts: Sequence[int], tokens: Sequence[int]) -> int:
    """How many drafts are what the model chose, up to the first that is not."""
    for i, draft in enumerate(drafts):
        if draft != tokens[i]:
            return i
    return len(drafts)


def _speculative_sampling(
    logits: Sequence[Tensor],
    draft_ids: Sequence[Sequence[int]],
    draft_probs: Sequence[Tensor],
    params: Sequence[SamplingParams],
    output_positions: Sequence[int],
) -> list[tuple[int, int | None]]:
    """For each chunk: accepted drafts, and the token in place of the first rejected one.

    Draft d is accepted with probability min(1, p(d) / q(d)); in place of a rejected one a
    token is drawn from max(p - q, 0), normalised. The token is None where all are accepted.
    """
    if not logits:
        return []
    counts = [len(ids) for ids in draft_ids]
    row_params = _per_row(params, counts)
    seeds = [p.seed for p in row_params]
    positions = _row_positions(output_positions, counts)
    target = filtered_probs(torch.cat(list(logits)), row_params)
    draft = torch.cat(list(draft_probs)).to(target)
    if draft.shape != target.shape:
        raise ValueError(
            f"draft probabilities are {tuple(draft.shape)}, the model's {tuple(target.shape)}: "
            "one row a draft and the same vocabulary are needed"
        )
    ids = torch.tensor(list(chain.from_iterable(draft_ids)), device=target.device)[:, None]
    # p and q of the drafts together: one transfer from the device
    of_drafts = torch.cat([target.gather(-1, ids), draft.gather(-1, ids)], dim=-1).cpu().numpy()
    passes = _uniforms(_ACCEPT, seeds, positions) * of_drafts[:, 1] < of_drafts[:, 0]
    spans = list(pairwise([0, *accumulate(counts)]))
    accepted = [_common_prefix([True] * (end - a), passes[a:end].tolist()) for a, end in spans]
    rejected = [a + n for (a, end), n in zip(spans, accepted, strict=True) if a + n < end]
    tokens = iter(_resample(target, draft, rejected, seeds, positions))
    return [
        (n, next(tokens) if n < count else None) for n, count in zip(accepted, counts, strict=True)
    ]


def _resample(
    target: Tensor,
    draft: Tensor,
    rows: Sequence[int],
    seeds: Sequence[int],
    positions: Sequence[int],
) -> list[int]:
    """A token for each of `rows`, drawn from the residual of the model's distribution."""
    if not rows:
        return []
    picked = torch.tensor(rows, device=target.device)
    p = target[picked]
    residual = (p - draft[picked]).clamp_(min=0)
    # p equals q but for rounding: a rejection has probability 0 then, up to the same rounding
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, p)
    return _invert(
        residual, _uniforms(_RESAMPLE, [seeds[r] for r in rows], [positions[r] for r in rows])
    )


def _invert(weights: Tensor, uniforms: npt.NDArray[np.float64]) -> list[int]:
    """The token at which the cumulative weight passes the uniform number, row by row."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = torch.from_numpy(uniforms).to(weights.device)[:, None] * total
    place = torch.searchsorted(cumulative, threshold, right=True)
    last = (cumulative < total).sum(dim=-1, keepdim=True)  # no further token has any weight
    return torch.minimum(place, last).squeeze(-1).tolist()


def _uniforms(
    purpose: int, seeds: Sequence[int], positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """As `uniform`, in a stream of its own for each purpose."""
    # the seeds of a purpose are themselves numbers of the sampler's stream, which no output
    # is long enough to reach
    keys = (uniform(seeds, [purpose << 40] * len(seeds)) * 2.0**53).astype(np.uint64)
    return uniform(keys.tolist(), positions)

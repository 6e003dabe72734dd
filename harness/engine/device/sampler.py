"""Chooses the next tokens.

A request's random stream is a function of its seed and the position in its output, and of
nothing else: one uniform number a token, by inverting the cumulative distribution. So the
same request gives the same tokens in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.engine.device.staging import upload
from harness.engine.request import SamplingParams

NOT_DRAWN = -1.0
"""In place of the uniform number of a row that takes the best token."""


class Sampled(NamedTuple):
    """One token a row, and how far its best logit is ahead of the second best."""

    token_ids: list[int]
    margins: list[float]


class SampledRows(NamedTuple):
    """As `Sampled`, on the device: (rows,) int64 and float32."""

    tokens: Tensor
    margins: Tensor


def sample(
    logits: Tensor, params: Sequence[SamplingParams], output_positions: Sequence[int]
) -> Sampled:
    """Choose a token for each row of `logits` (rows, vocabulary).

    Greedy rows take the best logit, the first index where several are equal. Others divide by
    the temperature, keep the `top_k` best, then the smallest set of best tokens whose
    probability reaches `top_p`, and draw. `logits` is written to, and restored.
    """
    if logits.shape[0] == 0:
        return Sampled([], [])
    tokens, margins = sample_rows(logits, params, output_positions)
    both = torch.stack((tokens.double(), margins.double())).tolist()  # one wait; both fit exactly
    return Sampled([int(token) for token in both[0]], both[1])


def sample_rows(
    logits: Tensor, params: Sequence[SamplingParams], output_positions: Sequence[int]
) -> SampledRows:
    """As `sample`, for a result that stays on the device: the host waits for nothing."""
    tokens, margins = greedy(logits)
    drawn = [row for row, p in enumerate(params) if p.temperature > 0]
    if drawn:
        columns = draw_columns(
            [params[row] for row in drawn], [output_positions[row] for row in drawn]
        )
        places, columns_there = upload((np.array(drawn), columns), logits.device)
        tokens.index_copy_(0, places, draw(logits[places], columns_there))
    return SampledRows(tokens, margins)


def greedy(logits: Tensor) -> SampledRows:
    """The best token of each row, the first index where several are equal. `logits` is written
    to, and restored."""
    margins, best = _margins(logits)
    return SampledRows(best, margins)


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), each a hash of (seed, position): SplitMix64 (Steele et al., 2014)."""
    mask = 2**64 - 1
    state = np.array([seed & mask for seed in seeds], dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = _splitmix(state) ^ np.array(positions, dtype=np.uint64)
        bits = _splitmix(state) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _splitmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _margins(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Best less second-best logit of each row, and the index of the best."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        best = torch.from_numpy(logits.numpy().argmax(axis=-1))[:, None]  # 6 x torch's speed
    else:
        best = logits.argmax(dim=-1, keepdim=True)
    top = logits.gather(-1, best)
    logits.scatter_(-1, best, float("-inf"))  # in place and back: a copy costs more than all else
    second = logits.amax(dim=-1, keepdim=True)
    logits.scatter_(-1, best, top)
    return (top - second).float().squeeze(-1), best.squeeze(-1)


def draw_columns(
    params: Sequence[SamplingParams], output_positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """What `draw` has to know of each row: (4, rows) of temperature, top_k (0 for all), top_p
    and the row's uniform number, `NOT_DRAWN` where the temperature is 0."""
    uniforms = uniform([p.seed for p in params], output_positions)
    is_drawn = np.array([p.temperature > 0 for p in params])
    return np.array(
        [
            [p.temperature if p.temperature > 0 else 1.0 for p in params],
            [p.top_k for p in params],
            [p.top_p for p in params],
            np.where(is_drawn, uniforms, NOT_DRAWN),
        ]
    )


def draw(logits: Tensor, columns: Tensor) -> Tensor:
    """A token for each row, (rows,) int64, by `columns` of `draw_columns` on the device. Nothing
    here depends on values on the host, so it can be captured."""
    temperature, top_k, top_p, uniforms = (column[:, None] for column in columns)
    scaled = logits.double() / temperature
    ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered.masked_fill_((rank >= top_k) & (top_k > 0), float("-inf"))
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    # The best token always stays, so top_p 0 means greedy.
    dropped = (before >= top_p) & (rank > 0)
    cumulative = probability.masked_fill_(dropped, 0.0).cumsum(dim=-1)
    threshold = uniforms * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, threshold, right=True)
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    tokens: Tensor = index.gather(-1, torch.minimum(place, last)).squeeze(-1)
    return tokens

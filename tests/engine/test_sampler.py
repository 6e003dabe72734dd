from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from harness.engine.device.sampler import sample, uniform
from harness.engine.request import SamplingParams

VOCAB = 50


def _logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn((rows, VOCAB), generator=torch.Generator().manual_seed(seed))


def _tokens(logits: torch.Tensor, params: SamplingParams, positions: list[int]) -> list[int]:
    return sample(logits, [params] * len(positions), positions).token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_equal_best_logits(dtype: torch.dtype) -> None:
    logits = torch.zeros((2, VOCAB), dtype=dtype)
    logits[0, [7, 9]] = 2.0
    logits[1, 30] = 1.5
    got = sample(logits, [SamplingParams()] * 2, [0, 0])
    assert got.token_ids == [7, 30]
    assert got.margins == [0.0, 1.5]


def test_margins_are_best_less_second_best() -> None:
    logits = _logits(6)
    top = logits.topk(2).values
    expected = (top[:, 0] - top[:, 1]).tolist()
    params = [SamplingParams(temperature=t) for t in (0, 1, 0, 0.5, 0, 2)]
    assert sample(logits, params, [0] * 6).margins == pytest.approx(expected)


def test_tokens_do_not_depend_on_the_batch() -> None:
    rng = random.Random(5)
    logits = _logits(40)
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 3, 20]),
            top_p=rng.choice([1.0, 0.9, 0.4]),
            seed=rng.randrange(2**70),
        )
        for _ in range(40)
    ]
    positions = [rng.randrange(1000) for _ in range(40)]
    alone = [
        sample(logits[i : i + 1], params[i : i + 1], positions[i : i + 1]).token_ids[0]
        for i in range(40)
    ]
    order = list(range(40))
    rng.shuffle(order)
    mixed = sample(logits[order], [params[i] for i in order], [positions[i] for i in order])
    assert mixed.token_ids == [alone[i] for i in order]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    n = 20_000
    tokens = _tokens(logits.repeat(n, 1), SamplingParams(temperature=2.0, seed=9), list(range(n)))
    observed = np.bincount(tokens, minlength=4) / n
    expected = (logits[0] / 2.0).softmax(-1).numpy()
    assert np.abs(observed - expected).max() < 5 * 0.5 / np.sqrt(n)


def test_top_k_and_top_p_keep_the_best_only() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = probabilities.log().repeat(3000, 1)
    positions = list(range(3000))

    def seen(**options: float) -> set[int]:
        return set(_tokens(logits, SamplingParams(temperature=1.0, **options), positions))

    assert seen() == {0, 1, 2, 3}
    assert seen(top_k=2) == {0, 1}
    assert seen(top_p=0.65) == {0, 1}
    assert seen(top_p=0.75) == {0, 1, 2}
    assert seen(top_k=3, top_p=0.3) == {0}
    assert seen(top_p=0.0) == {0}


def test_streams_differ_by_seed_and_by_position() -> None:
    numbers = uniform([1, 1, 2, 2, 2**64 - 1], [0, 1, 0, 1, 0])
    assert len(set(numbers.tolist())) == 5
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert uniform([1], [1])[0] == numbers[1]


def test_no_rows() -> None:
    assert sample(torch.empty((0, VOCAB)), [], []) == ([], [])

"""The arithmetic against published figures and against counting step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.kv_arithmetic import (
    STRATEGIES,
    KVShape,
    Lengths,
    common_models,
    gpus_needed,
    model_users,
)
from harness.engine.device.model_shape import model_preset, model_shape

MODELS = {model.name: model for model in common_models()}


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        ("OPT-13B", 800 * 1024),  # PagedAttention, section 3: 800 KB a token
        ("LLaMA-2-7B", 512 * 1024),
        ("Llama-3.1-8B", 128 * 1024),
        ("Qwen2.5-72B", 327_680),  # DeepSeek-V3, ISCA 2025 (arXiv 2505.09343), table 1
        ("DeepSeek-V3", 70_272),  # the same table
        ("Gemma-2-9B", 336 * 1024),
    ],
)
def test_a_token_takes_what_was_published(name: str, token_bytes: int) -> None:
    assert MODELS[name].token_bytes == token_bytes


@pytest.mark.parametrize(
    ("name", "preset"), [("OPT-13B", "opt_13b"), ("Llama-3.1-8B", "llama_3_1_8b")]
)
def test_presets_of_the_same_models_agree(name: str, preset: str) -> None:
    shape = model_shape(model_preset(preset))
    model = MODELS[name]
    assert shape.kv_bytes_per_token == model.token_bytes
    assert shape.max_positions == model.context
    assert shape.weight_bytes == pytest.approx(model.weight_bytes, rel=0.01)


def test_a_window_keeps_no_more_than_itself() -> None:
    mistral, gemma = MODELS["Mistral-7B-v0.1"], MODELS["Gemma-2-9B"]
    assert mistral.request_bytes(3000) == 3000 * mistral.token_bytes
    assert mistral.request_bytes(32768) == 4096 * mistral.token_bytes
    # half of the layers keep all 8192, the others half of them
    assert gemma.request_bytes(8192) == 0.75 * 8192 * gemma.token_bytes


PAIRS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=5
)


def lengths_of(pairs: list[tuple[int, int, int]]) -> Lengths:
    table = np.array(pairs)
    return Lengths(table[:, 0], table[:, 1], table[:, 2] / table[:, 2].sum())


@given(PAIRS, st.integers(1, 20))
def test_means_are_those_of_every_step_of_every_request(
    pairs: list[tuple[int, int, int]], page_size: int
) -> None:
    lengths, limit = lengths_of(pairs), 200
    held: dict[str, list[int]] = {strategy: [] for strategy in STRATEGIES}
    resident: list[int] = []
    for prompt, output, count in pairs:
        for _ in range(count):
            for step in range(output):
                resident.append(prompt + step)
                held["paged"].append(page_size * math.ceil((prompt + step) / page_size))
                held["oracle"].append(page_size * math.ceil((prompt + output - 1) / page_size))
                held["max"].append(page_size * math.ceil((limit - 1) / page_size))
    assert lengths.resident_tokens == pytest.approx(np.mean(resident))
    for strategy in STRATEGIES:
        mean = np.mean(held[strategy])
        assert lengths.held_tokens(strategy, limit, page_size) == pytest.approx(mean)
        assert lengths.waste(strategy, limit, page_size) == pytest.approx(
            1 - np.mean(resident) / mean
        )


def test_seven_requests_of_2048_fit_the_papers_pool() -> None:
    lengths = Lengths.sharegpt()
    assert lengths.users("max", 2048, 16, 983 * 16) == 7  # Fig. 13: 7.00 batched requests
    assert lengths.mean_total == pytest.approx(161.2 + 338.0, rel=0.01)
    users = [lengths.users(strategy, 2048, 16, 983 * 16) for strategy in STRATEGIES]
    assert users == sorted(users)


def test_waste_grows_with_the_bound_and_shrinks_with_the_requests() -> None:
    waste = [
        [Lengths.sharegpt(scale).waste("max", limit, 16) for limit in (32768, 131072)]
        for scale in (0.125, 1.0, 8.0)
    ]
    assert all(short < long for short, long in waste)
    assert waste[0] > waste[1] > waste[2]


def test_as_many_gpus_as_weights_and_one_whole_request_need() -> None:
    model = KVShape("m", layers=1, layer_values=1, context=10, weight_bytes=100.0)
    assert model.request_bytes(10) == 20
    assert [gpus_needed(model, size, 1.0) for size in (120, 119, 30, 29)] == [1, 2, 4, 8]
    lengths = lengths_of([(4, 1, 1)])
    assert model_users(model, lengths, "max", 33, 160) == 2  # 2 pages of 16 values of 2 bytes each
    assert model_users(model, lengths, "paged", 33, 160) == 5

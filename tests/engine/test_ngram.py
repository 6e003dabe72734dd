from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from harness.engine.scheduling.speculation import (
    NgramIndex,
    SpeculationConfig,
    expected_tokens_per_step,
    inject_drafts,
    propose_ngram,
)

_HISTORY = st.lists(st.integers(0, 3), max_size=40)


def naive(tokens: list[int], num_tokens: int, ngram_min: int, ngram_max: int) -> tuple[int, ...]:
    """The most recent earlier occurrence of the longest suffix, by looking everywhere."""
    for length in range(ngram_max, ngram_min - 1, -1):
        suffix = tokens[len(tokens) - length :]
        ends = [e for e in range(length, len(tokens)) if tokens[e - length : e] == suffix]
        if ends and length <= len(tokens):
            drafts = list(tokens)
            for i in range(num_tokens):
                drafts.append(drafts[ends[-1] + i])
            return tuple(drafts[len(tokens) :])
    return ()


@settings(max_examples=300)
@given(_HISTORY, st.integers(1, 6), st.integers(1, 3), st.integers(0, 3))
def test_the_index_finds_what_a_search_finds(
    tokens: list[int], num_tokens: int, ngram_min: int, more: int
) -> None:
    ngram_max = ngram_min + more
    index = NgramIndex(ngram_min, ngram_max)
    for i, token in enumerate(tokens):
        assert index.propose(num_tokens) == naive(tokens[:i], num_tokens, ngram_min, ngram_max)
        index.append(token)
    expected = naive(tokens, num_tokens, ngram_min, ngram_max)
    assert index.propose(num_tokens) == expected
    assert propose_ngram(tokens, num_tokens, ngram_min, ngram_max) == expected
    assert len(index) == len(tokens)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(1, 5), st.integers(1, 3))
def test_transformers_drafts_the_same_where_there_is_one_match(
    tokens: list[int], num_tokens: int, ngram_max: int
) -> None:
    for length in range(ngram_max, 0, -1):
        suffix = tokens[len(tokens) - length :]
        ends = [e for e in range(length, len(tokens)) if tokens[e - length : e] == suffix]
        if ends:
            break
    if len(ends) > 1:
        return
    generator = PromptLookupCandidateGenerator(
        num_output_tokens=num_tokens, max_matching_ngram_size=ngram_max, max_length=1000
    )
    history = torch.tensor([tokens])
    theirs = generator.get_candidates(history)[0][0, len(tokens) :].tolist()
    ours = propose_ngram(tokens, num_tokens, 1, ngram_max)
    assert list(ours[: len(theirs)]) == theirs
    assert bool(ours) == bool(theirs)


def test_the_longest_and_then_the_most_recent_match_counts() -> None:
    history = [1, 2, 7, 0, 2, 8, 0, 2, 9, 0, 1, 2]
    assert propose_ngram(history, 3, 1, 1) == (9, 0, 1)
    assert propose_ngram(history, 3, 1, 2) == (7, 0, 2)
    assert propose_ngram(history, 3, 2, 5) == (7, 0, 2)
    assert propose_ngram(history, 3, 3, 5) == ()


def test_a_cycle_goes_on_into_the_draft() -> None:
    assert propose_ngram([5, 5], 4, 1, 3) == (5, 5, 5, 5)
    assert propose_ngram([9, 1, 2, 1, 2], 5, 1, 3) == (1, 2, 1, 2, 1)


@pytest.mark.parametrize(("low", "high"), [(0, 2), (3, 2)])
def test_an_index_refuses_lengths_that_make_no_sense(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"ngram_min={low}, ngram_max={high}"):
        NgramIndex(low, high)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ngrams"}, r"engine\.speculation\.method='ngrams': choose one of none, ngram"),
        ({"num_tokens": 0}, r"engine\.speculation\.num_tokens=0: must be at least 1"),
        ({"ngram_min": 0}, r"engine\.speculation\.ngram_min=0: must be at least 1"),
        ({"ngram_min": 4}, r"engine\.speculation\.ngram_max=3: must be at least .*ngram_min=4"),
        ({"acceptance": 1.1}, r"engine\.speculation\.acceptance=1\.1: must be in \[0, 1\]"),
        ({"acceptance": float("nan")}, r"engine\.speculation\.acceptance=nan: must be in"),
    ],
)
def test_a_setting_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        SpeculationConfig(**options)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_injected_drafts_are_right_as_often_as_asked(acceptance: float) -> None:
    n, vocab = 20_000, 5
    drafts = inject_drafts([3] * n, acceptance, seed=1, position=0, vocab_size=vocab)
    right = [draft == 3 for draft in drafts]
    assert abs(sum(right) / n - acceptance) <= 5 * (acceptance * (1 - acceptance) / n) ** 0.5
    both = sum(a and b for a, b in itertools.pairwise(right)) / (n - 1)
    assert abs(both - acceptance**2) < 5 * 0.5 / n**0.5, "one draft's luck decides the next one's"
    wrong = [draft for draft in drafts if draft != 3]
    for token in (0, 1, 2, 4):
        assert abs(wrong.count(token) - len(wrong) / 4) <= 5 * (len(wrong) / 4) ** 0.5


def test_injected_drafts_depend_on_seed_and_position_alone() -> None:
    true_ids = list(range(50))
    whole = inject_drafts(true_ids, 0.5, seed=7, position=10, vocab_size=60)
    for start in range(50):
        part = inject_drafts(true_ids[start : start + 4], 0.5, 7, 10 + start, 60)
        assert part == whole[start : start + 4]
    assert inject_drafts(true_ids, 0.5, seed=8, position=10, vocab_size=60) != whole
    assert inject_drafts([], 0.5, 0, 0, 60) == ()
    with pytest.raises(ValueError, match="vocab_size=1"):
        inject_drafts([0], 0.5, 0, 0, 1)


@pytest.mark.parametrize("num_tokens", [1, 4, 8])
def test_tokens_a_step_follow_the_papers_formula(num_tokens: int) -> None:
    acceptance, total, steps, position = 0.7, 0, 4000, 0
    for _ in range(steps):
        drafts = inject_drafts([1] * num_tokens, acceptance, 3, position, 9)
        accepted = [*drafts, 0].index(next((d for d in drafts if d != 1), 0))
        total += accepted + 1
        position += num_tokens
    expected = (1 - acceptance ** (num_tokens + 1)) / (1 - acceptance)
    assert expected_tokens_per_step(acceptance, num_tokens) == pytest.approx(expected)
    assert total / steps == pytest.approx(expected, rel=0.05)
    assert expected_tokens_per_step(1.0, num_tokens) == num_tokens + 1


def test_drafting_needs_no_torch() -> None:
    code = "import sys, harness.engine.scheduling.speculation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

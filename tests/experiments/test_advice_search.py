"""The search for the smallest pool, on made-up systems whose best settings are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.advice.search import (
    FOLK_FRACTIONS,
    HIGHEST_FRACTION,
    POOL_TOLERANCE,
    SAVING,
    Advice,
    Problem,
    advise,
    around,
    confirm,
)
from experiments.advice.setting import KNOBS, Setting, moves

START = Setting("paged", 16, 2048, "recompute", HIGHEST_FRACTION, 4000.0, 1.0)
MEMORY_TOKENS = 100_000
LOWEST = 0.02
TARGET = 0.9
MOST_RUNS = 120


def pool_tokens(setting: Setting) -> int:
    return int(setting.memory_fraction * MEMORY_TOKENS)


def fraction_of(setting: Setting, tokens: float) -> float:
    return round(tokens / MEMORY_TOKENS, 4)


def problem(start: Setting = START, fixed: tuple[str, ...] = ()) -> Problem:
    return Problem(
        start, TARGET, 0.02, round(LOWEST * MEMORY_TOKENS), fraction_of, pool_tokens, fixed
    )


def confirmed(
    asked: Problem,
) -> Generator[Sequence[Setting], Mapping[Setting, float], Advice]:
    return (yield from confirm(asked, (yield from advise(asked))))


def run(
    attainment: Callable[[Setting], float],
    asked: Problem,
    searched: Callable[[Problem], Generator[Any, Any, Advice]] = advise,
) -> Advice:
    """The advice on a system, every setting of which was asked for once."""
    search = searched(asked)
    seen: set[Setting] = set()
    batch = next(search)
    while True:
        assert batch and seen.isdisjoint(batch) and len(set(batch)) == len(batch)
        seen |= set(batch)
        try:
            batch = search.send({setting: attainment(setting) for setting in batch})
        except StopIteration as stop:
            assert len(seen) <= MOST_RUNS
            assert isinstance(stop.value, Advice)
            assert set(stop.value.tried) == seen
            return stop.value


Factors = Mapping[tuple[str, object], float]


def needed(factors: Factors, base: float, setting: Setting) -> float:
    """Tokens of pool with which the system attains everything: what each knob costs, times."""
    tokens = base * setting.load
    for knob, value in setting.knobs().items():
        tokens *= factors[knob, value]
    return tokens


def system(factors: Factors, base: float) -> Callable[[Setting], float]:
    return lambda setting: min(1.0, pool_tokens(setting) / needed(factors, base, setting))


@st.composite
def systems(draw: st.DrawFn) -> Factors:
    """What each value of each knob costs: nothing, or so much that leaving it pays."""
    return {
        (knob, value): draw(st.sampled_from([1.0, 1.3, 2.0]))
        for knob, (_, values) in KNOBS.items()
        for value in values
    }


@given(systems(), st.floats(1_000, 12_000))
@settings(max_examples=60)
def test_finds_the_smallest_pool_of_all_combinations(factors: Factors, base: float) -> None:
    advice = run(system(factors, base), problem())
    combinations = itertools.product(*(values for _, values in KNOBS.values()))
    smallest = min(
        needed(factors, base, replace(START, **dict(zip(KNOBS, values, strict=True))))
        for values in combinations
    )
    best = max(TARGET * smallest, LOWEST * MEMORY_TOKENS)
    assert advice.is_met
    assert advice.tried[advice.answer] >= TARGET
    assert advice.answer.memory_fraction >= LOWEST
    assert pool_tokens(advice.answer) <= best * SAVING * (1 + POOL_TOLERANCE) * 1.01


@given(systems(), st.floats(1_000, 12_000))
@settings(max_examples=30)
def test_fixed_knobs_stay(factors: Factors, base: float) -> None:
    advice = run(system(factors, base), problem(fixed=("token_budget", "allocator")))
    assert {setting.token_budget for setting in advice.tried} == {2048}
    assert {setting.allocator for setting in advice.tried} == {"paged"}


def test_where_nothing_matters_common_values_stay() -> None:
    factors = {(knob, value): 1.0 for knob, (_, values) in KNOBS.items() for value in values}
    advice = run(system(factors, 40_000), problem())
    assert advice.answer.knobs() == START.knobs()
    assert advice.answer.memory_fraction == pytest.approx(0.36, rel=POOL_TOLERANCE)


def test_chance_moves_no_knob() -> None:
    """Gains below what chance gives are not followed."""
    factors = {(knob, value): 1.0 for knob, (_, values) in KNOBS.items() for value in values}
    plain = system(factors, 40_000)
    noisy = run(lambda s: plain(s) + (0.015 if s.page_size == 8 else 0.0), problem())
    assert noisy.answer.page_size == 16


@given(systems(), st.floats(0.05, 0.8))
@settings(max_examples=30)
def test_a_load_that_is_too_much_is_said_with_what_can_be_served(
    factors: Factors, share: float
) -> None:
    """The system needs the whole of the largest pool for `share` of the load."""
    flat = dict.fromkeys(factors, 1.0)
    largest = HIGHEST_FRACTION * MEMORY_TOKENS
    advice = run(system(flat, largest / TARGET / share), problem())
    assert not advice.is_met
    assert advice.answer.memory_fraction == HIGHEST_FRACTION
    assert advice.tried[advice.answer] == max(
        attained for setting, attained in advice.tried.items() if setting.load == 1.0
    )
    assert advice.reached_load is not None
    if share > 0.056:
        assert advice.reached_load <= share * 1.001 <= advice.reached_load * 1.12


def test_a_system_that_serves_nothing_ends() -> None:
    advice = run(lambda setting: 0.0, problem())
    assert not advice.is_met and advice.reached_load == 0


def test_with_all_the_memory_the_knobs_are_climbed() -> None:
    """Only another budget and another page together attain the target."""

    def attainment(setting: Setting) -> float:
        gain = 0.3 * (setting.token_budget == 512) + 0.3 * (setting.page_size == 64)
        return (0.35 + gain) * (setting.memory_fraction > 0.5)

    advice = run(attainment, problem())
    assert advice.is_met
    assert (advice.answer.token_budget, advice.answer.page_size) == (512, 64)
    assert 0.5 < advice.answer.memory_fraction < 0.5 * (1 + POOL_TOLERANCE) * SAVING


def test_the_neighbours_of_an_answer_are_one_step_away() -> None:
    answer = START.at(0.6)
    found = around(answer, (), LOWEST)
    assert all(setting != answer for setting in found)
    for setting in found:
        different = [
            name
            for name in Setting.__dataclass_fields__
            if getattr(setting, name) != getattr(answer, name)
        ]
        assert len(different) == 1
    assert {s.memory_fraction for s in found} == {0.6, 0.55, 0.65, *FOLK_FRACTIONS}
    assert {s.host_us for s in found} == {0.0, 4000.0, 8000.0}
    assert {s.page_size for s in moves(answer, (), 1)} == {8, 16, 32}
    assert len(moves(answer, ())) == sum(len(values) - 1 for _, values in KNOBS.values())


@pytest.mark.parametrize("more", [0.8, 1.0, 1.02, 1.5, 3.0, 100.0])
def test_the_pool_is_as_large_as_the_whole_trace_needs(more: float) -> None:
    """Of a trace that needs `more` times the pool of its busiest stretch."""

    def attainment(setting: Setting) -> float:
        return min(1.0, pool_tokens(setting) / (20_000 * (more if setting.whole else 1.0)))

    advice = run(attainment, problem(), confirmed)
    whole = replace(advice.answer, whole=True)
    needs = TARGET * 20_000 * max(1.0, more)
    assert not advice.answer.whole and advice.answer in advice.tried
    assert advice.is_whole_met == (advice.tried[whole] >= TARGET) == (more < 100)
    if advice.is_whole_met:
        slack = (1 + POOL_TOLERANCE) ** 2 + 0.01
        assert needs <= pool_tokens(advice.answer) * 1.001 <= needs * slack * 1.001
    else:
        assert advice.answer.memory_fraction == HIGHEST_FRACTION
    is_raised = advice.of_stretch is not None
    assert is_raised == (more > 1.05) or more == 1.02

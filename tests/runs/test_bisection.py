"""The search for the highest sustained value, on capacity curves that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ConfigError, SearchConfig
from harness.runs.bisection import (
    EXTENSION,
    MAX_EXTENSIONS,
    Bracket,
    Probe,
    Search,
    bracket,
    next_value,
)

REACH = EXTENSION**MAX_EXTENSIONS


def run(search: Search, sustains: Callable[[float], bool]) -> list[Probe]:
    """All probes of a search."""
    probes: list[Probe] = []
    while (value := next_value(search, probes)) is not None:
        assert value not in {probe.value for probe in probes}
        probes.append(Probe(value, sustains(value)))
        assert len(probes) < 100
    return probes


@st.composite
def searches(draw: st.DrawFn) -> Search:
    low = draw(st.floats(1e-3, 1e3))
    high = low * draw(st.floats(1.5, 1e4))
    return Search("workload.rate", low, high, draw(st.floats(0.005, 1.0)), 100.0)


@given(searches(), st.floats(0, 1), st.randoms())
def test_brackets_a_knee_within_its_reach(search: Search, where: float, random: object) -> None:
    low, high = search.low / REACH * 1.01, search.high * REACH / 1.01
    knee = low * (high / low) ** where
    probes = run(search, lambda value: value <= knee)
    found = bracket(probes)
    assert found.sustained <= knee < found.unsustained
    assert found.unsustained <= found.sustained * (1 + search.tolerance) * 1.002  # of rounding


@given(searches(), st.floats(0.02, 0.98))
def test_takes_no_more_probes_than_announced(search: Search, where: float) -> None:
    knee = search.low * (search.high / search.low) ** where
    assert len(run(search, lambda value: value <= knee)) <= search.most_probes


@given(searches(), st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True))
def test_a_higher_capacity_never_has_a_lower_answer(search: Search, where: list[float]) -> None:
    knees = [search.low * (search.high / search.low) ** each for each in sorted(where)]
    answers = [bracket(run(search, knee.__ge__)).sustained for knee in knees]
    assert answers == sorted(answers)


@given(searches())
def test_says_so_where_everything_or_nothing_is_sustained(search: Search) -> None:
    everything = bracket(run(search, lambda value: True))
    assert everything.sustained == pytest.approx(search.high * REACH, rel=1e-3)
    assert everything.unsustained == math.inf
    nothing = bracket(run(search, lambda value: False))
    assert nothing.unsustained == pytest.approx(search.low / REACH, rel=1e-3)
    assert nothing.sustained == 0


@given(searches(), st.floats(0, 1), st.integers(0, 20))
def test_goes_on_from_stored_probes_in_any_order(search: Search, where: float, cut: int) -> None:
    knee = search.low * (search.high / search.low) ** where
    probes = run(search, knee.__ge__)
    if cut < len(probes):
        assert next_value(search, probes[:cut][::-1]) == probes[cut].value


@given(searches(), st.lists(st.booleans(), min_size=100, max_size=100))
def test_ends_whatever_the_probes_say(search: Search, answers: list[bool]) -> None:
    run(search, lambda value: answers.pop())


def test_contradicting_probes_give_the_lower_answer() -> None:
    assert bracket([Probe(1, True), Probe(2, False), Probe(4, True)]) == Bracket(1, 2)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"low": 0.0, "high": 4.0}, "search.low=0.0"),
        ({"low": 4.0, "high": 4.0}, "search.high=4.0"),
        ({"low": 1.0, "high": 4.0, "tolerance": 0.0}, "search.tolerance=0.0"),
        ({"low": 1.0, "high": 4.0, "normalised_latency_ms": -1.0}, "normalised_latency_ms=-1.0"),
    ],
)
def test_a_range_that_is_none_is_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SearchConfig(**values)  # type: ignore[arg-type]

"""An experiment's axes as a list of runs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from harness.runs.grid import Part, expand, to_override

KEYS = ("allocator", "kv.page_size", "seed", "workload")
LISTS = st.dictionaries(
    st.sampled_from(KEYS), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
)
SINGLE = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 5))


@given(LISTS, SINGLE, SINGLE, LISTS)
def test_a_part_is_the_product_of_what_the_user_left_open(axes, settings, fixed, swept):
    fixed = {key: str(value) for key, value in fixed.items() if key not in swept}
    swept = {key: [str(v) for v in values] for key, values in swept.items()}
    axes = {key: values for key, values in axes.items() if key not in settings}
    cells = expand([Part("only", settings, axes)], fixed, swept)
    open_axes = {k: v for k, v in axes.items() if k not in fixed and k not in swept} | swept
    expected = set()
    for point in itertools.product(*open_axes.values()):
        values = {**settings, **dict(zip(open_axes, point, strict=True)), **fixed}
        expected.add(frozenset(f"{key}={value}" for key, value in values.items()))
    assert all(len(set(cell.overrides)) == len(cell.overrides) for cell in cells)
    assert {frozenset(cell.overrides) for cell in cells} == expected
    assert len(cells) == len(expected)


def test_a_part_about_values_that_the_user_replaces_is_left_out():
    parts = [
        Part("reference", {}, {"allocator": ["contiguous"]}, unless=("allocator",)),
        Part("paged", {}, {"allocator": ["paged", "paged_cow"]}),
    ]
    assert [cell.part for cell in expand(parts, {}, {})] == ["reference", "paged", "paged"]
    assert [cell.part for cell in expand(parts, {"allocator": "mine"}, {})] == ["paged"]
    assert [c.part for c in expand(parts, {}, {"allocator": ["a", "b"]})] == ["paged", "paged"]


def test_an_option_reaches_the_allocators_that_have_it():
    parts = [
        Part("lines", {"allocator.fit": "best_fit"}, {"allocator": ["contiguous"]}),
        Part("paged", {}, {"allocator": ["paged", "paged_prefix"]}),
    ]

    def takes(allocator: str, key: str) -> bool:
        return (allocator, key) == ("contiguous", "allocator.fit")

    cells = expand(parts, {"allocator.fit": "buddy"}, {}, takes)
    assert [cell.overrides for cell in cells] == [
        ("allocator=contiguous", "allocator.fit=buddy"),
        ("allocator=paged",),
        ("allocator=paged_prefix",),
    ]
    swept = expand(parts, {}, {"allocator.fit": ["buddy", "first_fit"]}, takes)
    assert [len(cell.overrides) for cell in swept] == [2, 2, 1, 1]
    nobody = expand(parts, {"allocator.fitt": "buddy"}, {}, takes)
    assert all("allocator.fitt=buddy" in cell.overrides for cell in nobody)


def test_parts_that_meet_in_a_cell_run_it_once():
    parts = [Part("a", {}, {"seed": [1, 2]}), Part("b", {}, {"seed": [2, 3]})]
    cells = expand(parts, {}, {})
    assert [(cell.part, cell.overrides) for cell in cells] == [
        ("a", ("seed=1",)),
        ("a", ("seed=2",)),
        ("b", ("seed=3",)),
    ]


def test_yaml_values_keep_their_meaning_as_overrides():
    assert [to_override(v) for v in (None, True, False, 0.5, "x")] == [
        "null",
        "true",
        "false",
        "0.5",
        "x",
    ]

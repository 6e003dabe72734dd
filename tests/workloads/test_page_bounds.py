"""Bounds of a cache of whole pages against exhaustive search."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.request import Request, Workload
from harness.workloads.ideal import ideal_prefix_hits
from harness.workloads.page_bounds import (
    PageAccess,
    belady_page_hits,
    infinite_page_hits,
    num_distinct_pages,
    page_accesses,
)

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)
PAIRS = st.lists(st.tuples(TOKENS, st.none() | TOKENS), min_size=1, max_size=6)


def workload(pairs):
    requests = tuple(
        Request(i, 0.0, prompt, 20, forced_ids=output) for i, (prompt, output) in enumerate(pairs)
    )
    return Workload("test", requests, "")


def subsets(pages, limit):
    pages = sorted(pages)
    for size in range(min(limit, len(pages)) + 1):
        yield from map(frozenset, combinations(pages, size))


def best_total(accesses, num_pages, *, as_tree):
    """Most hits of any policy, by trying every one. as_tree: a hit needs all pages before it."""
    best = {frozenset(): 0}
    for access in accesses:
        if access.num_held > num_pages:
            continue
        following = {}
        for cached, total in best.items():
            found = access.page_ids[: access.num_findable]
            hits = [page in cached for page in found]
            if as_tree:
                hits = hits[: (*hits, False).index(False)]
            for kept in subsets(cached - set(access.page_ids), num_pages - access.num_held):
                state = kept | set(access.page_ids)
                following[state] = max(following.get(state, 0), total + sum(hits))
        best = following
    return max(best.values())


def test_pages_of_a_request():
    pairs = [((1, 2, 3), (4, 5)), ((1, 2, 3, 4), None), ((1, 2, 3, 4, 9), (9, 9, 9))]
    assert page_accesses(workload(pairs), 2) == [
        PageAccess((0, 1), 1, 2),
        PageAccess((0, 1), 1, 2),
        PageAccess((0, 1, 2), 2, 4),
    ]
    assert num_distinct_pages(page_accesses(workload(pairs), 2)) == 3


@given(PAIRS, st.integers(1, 3))
def test_infinite_is_the_ideal_in_whole_pages(pairs, page_size):
    exact = ideal_prefix_hits(workload(pairs))
    hits = infinite_page_hits(page_accesses(workload(pairs), page_size))
    assert hits == [tokens // page_size for tokens in exact]


@settings(deadline=None, max_examples=150)
@given(PAIRS, st.integers(1, 2), st.integers(1, 6))
def test_belady_is_the_optimum_of_its_model(pairs, page_size, num_pages):
    accesses = page_accesses(workload(pairs), page_size)
    found = sum(belady_page_hits(accesses, num_pages))
    assert found == best_total(accesses, num_pages, as_tree=False)
    assert found >= best_total(accesses, num_pages, as_tree=True)


@settings(deadline=None, max_examples=100)
@given(PAIRS, st.integers(1, 6))
def test_belady_is_reached_on_a_tree_where_all_pages_are_findable(pairs, num_pages):
    """Requests that end with a token of their own after their pages, and have no output."""
    own = [((*prompt, 100 + i), None) for i, (prompt, _) in enumerate(pairs)]
    accesses = page_accesses(workload(own), 1)
    found = sum(belady_page_hits(accesses, num_pages))
    assert found == best_total(accesses, num_pages, as_tree=True)


@given(PAIRS, st.integers(1, 2))
def test_room_for_everything_is_as_good_as_no_limit(pairs, page_size):
    accesses = page_accesses(workload(pairs), page_size)
    most_held = max(access.num_held for access in accesses)
    room = num_distinct_pages(accesses) + most_held
    assert belady_page_hits(accesses, room) == infinite_page_hits(accesses)


@pytest.mark.parametrize(
    ("num_pages", "expected"),
    [(2, [0, 0, 0, 0, 0, 0]), (3, [0, 0, 0, 1, 0, 1]), (4, [0, 0, 0, 1, 1, 1])],
)
def test_farthest_next_use_goes_first(num_pages, expected):
    """Three prompts of a page and a token, A B C A B C: in three pages only one page can be kept
    while the next request runs, and while C runs that is A's."""
    prompts = [((token, token, 0), None) for token in (1, 2, 3)] * 2
    assert belady_page_hits(page_accesses(workload(prompts), 2), num_pages) == expected


def test_a_request_that_never_fits_changes_nothing():
    small, large = ((1, 2, 0), None), (tuple(range(1, 12)), None)
    accesses = page_accesses(workload([small, large, small]), 2)
    assert belady_page_hits(accesses, 3) == [0, 0, 1]

"""The radix tree against a comparison of every pair."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.engine.request import Request, Workload
from harness.workloads.ideal import ideal_prefix_hits

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def common(left, right):
    size = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        size += 1
    return size


def workload(pairs):
    requests = tuple(
        Request(i, 0.0, prompt, 20, forced_ids=output) for i, (prompt, output) in enumerate(pairs)
    )
    return Workload("test", requests, "")


@given(st.lists(st.tuples(TOKENS, st.none() | TOKENS), max_size=12))
def test_equals_the_comparison_of_every_pair(pairs):
    computed = [prompt + (output or (0,))[:-1] for prompt, output in pairs]
    expected = [
        min(len(prompt) - 1, max((common(prompt, c) for c in computed[:i]), default=0))
        for i, (prompt, _) in enumerate(pairs)
    ]
    assert ideal_prefix_hits(workload(pairs)) == expected


def test_the_last_output_token_is_never_written():
    pairs = [((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (9,)), ((1, 2, 3, 4, 5), (9,))]
    assert ideal_prefix_hits(workload(pairs)) == [0, 3, 4]

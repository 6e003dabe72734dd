"""Eviction policies through the real allocator never beat the bounds they stand beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.commands.cache_bounds import (
    POLICIES,
    capacity_rows,
    main,
    policy_page_hits,
    take_turns,
)
from harness.engine.request import Request, Workload
from harness.workloads.page_bounds import belady_page_hits, infinite_page_hits, page_accesses

Pair = tuple[tuple[int, ...], tuple[int, ...] | None]
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(tuple)
PAIRS = st.lists(st.tuples(TOKENS, st.none() | TOKENS), min_size=1, max_size=14)


def workload(pairs: Sequence[Pair]) -> Workload:
    requests = tuple(
        Request(i, 0.0, prompt, 20, forced_ids=output) for i, (prompt, output) in enumerate(pairs)
    )
    return Workload("test", requests, "test")


@settings(deadline=None, max_examples=200)
@given(PAIRS, st.integers(1, 2), st.integers(1, 12))
def test_no_policy_beats_belady(pairs: list[Pair], page_size: int, num_pages: int) -> None:
    given_workload = workload(pairs)
    accesses = page_accesses(given_workload, page_size)
    bound = sum(belady_page_hits(accesses, num_pages))
    assert bound <= sum(infinite_page_hits(accesses))
    for policy in POLICIES:
        hits = policy_page_hits(given_workload, accesses, page_size, num_pages, policy)
        assert sum(hits) <= bound, policy


@settings(deadline=None, max_examples=50)
@given(PAIRS, st.integers(1, 2))
def test_with_room_for_everything_all_find_what_an_infinite_cache_finds(
    pairs: list[Pair], page_size: int
) -> None:
    given_workload = workload(pairs)
    accesses = page_accesses(given_workload, page_size)
    for policy in POLICIES:
        hits = policy_page_hits(given_workload, accesses, page_size, 300, policy)
        assert hits == infinite_page_hits(accesses)


def test_policies_differ_where_they_should() -> None:
    """A prompt that comes back again and again among others that come once each."""
    hot: Pair = ((1, 2, 3, 4, 0), None)
    pairs = [hot, hot, hot]
    for i in range(30):
        pairs += [((10 * i + 100,) * 4 + (0,), None)] * 1
        if i % 4 == 3:
            pairs.append(hot)
    (row,) = capacity_rows(workload(pairs), 2, [0.1])
    assert row.num_pages == 6
    lru, lfu, fifo = (row.policies[policy] for policy in POLICIES)
    assert fifo <= lru < lfu <= row.belady <= row.infinite


def test_sessions_take_turns() -> None:
    sessions = [0, 0, 0, 1, 1, 2, -1, -1]
    requests = [Request(i, 0.0, (1,), 1, session_id=s) for i, s in enumerate(sessions)]
    order = [request.request_id for request in take_turns(requests, 2)]
    assert order == [0, 3, 1, 4, 2, 5, 6, 7]
    assert take_turns(requests, 1) == tuple(requests)


def test_table_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"timestamp": i, "input_length": 1024, "output_length": 8, "hash_ids": [0, 1 + i % 3]}
        for i in range(12)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["--format", "mooncake", "--path", str(path), "--length-scale", "0.0625"]
    assert main([*arguments, "--capacities", "0.5,1", "--num-requests", "9"]) == 0
    table = capsys.readouterr().out
    assert "9 requests of 12" in table
    lines = [line.split() for line in table.splitlines()]
    assert ["capacity", "pages", *POLICIES, "belady", "infinite", "too", "long"] in lines
    assert [line[0] for line in lines if line[0] in ("0.5", "1")] == ["0.5", "1"]


def test_unreadable_trace_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--format", "mooncake", "--path", "nowhere.jsonl"]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--format", "mooncake", "--path", "x", "--capacities", "0,1"])
    assert "above 0" in capsys.readouterr().err

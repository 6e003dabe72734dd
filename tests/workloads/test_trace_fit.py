"""A trace that nobody scaled still fits the pool and the model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate
from harness.workloads.trace import stretch
from harness.workloads.trace_row import TraceRow


def replay(path, format_="azure", *, longest_len, seed=0, **values):
    defaults = {"arrivals": "all_at_once", "num_requests": None, "max_len": None}
    config = WorkloadConfig(
        name="trace", generator="trace", format=format_, path=str(path), **(defaults | values)
    )
    return generate(config, seed=seed, vocab_size=4096, longest_len=longest_len)


def lengths(workload):
    return [len(r.prompt_ids) + len(r.forced_ids) for r in workload.requests]


@pytest.fixture
def azure(tmp_path):
    """100 requests of 40 to 1,030 tokens and one of 20,000."""
    rows = [f"2023-11-16 18:15:{i % 60:02d}.0,{30 + 10 * i},10" for i in range(100)]
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *sorted(rows)]) + "\n")
    with path.open("a") as file:
        file.write("2023-11-16 18:16:00.0,19000,1000\n")
    return path


@pytest.mark.parametrize("longest_len", [64, 256, 1000])
def test_most_of_the_trace_stays_and_all_of_it_fits(azure, longest_len):
    workload = replay(azure, longest_len=longest_len)
    assert 95 <= len(workload.requests) < 101
    assert max(r.max_len + 1 for r in workload.requests) <= longest_len
    assert max(lengths(workload)) > longest_len / 3
    assert f"fitted to requests of {longest_len} tokens" in workload.description


def test_a_trace_that_fits_is_left_alone(azure):
    workload = replay(azure, longest_len=20_000)
    assert len(workload.requests) == 101
    assert max(lengths(workload)) == 20_000
    assert "fitted" not in workload.description and " x " not in workload.description


def test_what_was_given_is_kept(azure):
    scaled = replay(azure, longest_len=256, length_scale=0.5)
    assert lengths(scaled)[0] == 20
    assert max(lengths(scaled)) <= 256
    bounded = replay(azure, longest_len=256, max_len=500)
    assert len(bounded.requests) == sum(40 + 10 * i < 500 for i in range(100))
    assert max(lengths(bounded)) <= 256


def test_shared_blocks_keep_a_page(tmp_path):
    path = tmp_path / "mooncake.jsonl"
    rows = [
        {"timestamp": i, "input_length": 512 * n, "output_length": 5, "hash_ids": list(range(n))}
        for i, n in enumerate([1, 2, 3, 40])
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    workload = replay(path, "mooncake", longest_len=64)
    assert [len(r.prompt_ids) for r in workload.requests] == [16, 32, 48]
    assert "1 of 4 too long" in workload.description


@pytest.mark.parametrize("longest_len", range(100, 400, 37))
def test_rounding_blocks_to_pages_does_not_overstep(tmp_path, longest_len):
    path = tmp_path / "mooncake.jsonl"
    rows = [
        {
            "timestamp": i,
            "input_length": 700 + i,
            "output_length": 5,
            "hash_ids": [2 * i, 2 * i + 1],
        }
        for i in range(50)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    workload = replay(path, "mooncake", longest_len=longest_len)
    assert max(r.max_len + 1 for r in workload.requests) <= longest_len


def test_seeds_replay_stretches_of_their_own():
    rows = [TraceRow(n, 1) for n in range(1, 101)]
    first, second = stretch(rows, 30, 0), stretch(rows, 30, 1)
    assert [r.prompt_len for r in first] == list(range(1, 31))
    assert [r.prompt_len for r in second] == list(range(31, 61))
    starts = {stretch(rows, 30, seed)[0].prompt_len for seed in range(12)}
    assert len(starts) == 12
    assert all(len(stretch(rows, 30, seed)) == 30 for seed in range(50))
    assert stretch(rows, None, 3) == rows == stretch(rows, 100, 3)


@pytest.mark.parametrize("num_requests", [40, 30, 50, 26])
def test_seeds_of_a_short_trace_differ_though_they_have_rows_in_common(num_requests):
    rows = [TraceRow(n, 1) for n in range(1, 80)]  # 79: twice 40 less one
    starts = [stretch(rows, num_requests, seed)[0].prompt_len for seed in range(10)]
    assert len(set(starts)) == 10


def test_a_workload_says_where_seeds_have_rows_in_common(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:17:03.9799600,5,5\n" * 50
    )
    said = [
        replay(path, longest_len=100, num_requests=20, seed=seed).description for seed in range(4)
    ]
    assert ["20 requests of 50, some of them of other seeds' too" in each for each in said] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_stretch_begins_with_a_session():
    rng = np.random.default_rng(0)
    rows = [
        TraceRow(turn + 1, 1, session=f"s{s}")
        for s in range(30)
        for turn in range(rng.integers(1, 5))
    ]
    for seed in range(20):
        part = stretch(rows, 12, seed)
        assert len(part) == 12
        assert part[0].prompt_len == 1

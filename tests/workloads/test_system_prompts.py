"""Many system prompts, some far more popular, in front of short requests that are made lazily."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate


def config(**changes: object) -> WorkloadConfig:
    values: dict[str, object] = {
        "name": "many", "generator": "system_prompts", "num_requests": 3000, "lengths": "uniform",
        "prompt_min": 4, "prompt_max": 9, "output_min": 2, "output_max": 5, "max_len": 64,
        "shared_len": 20, "arrivals": "poisson", "rate": 50.0,
        "options": {"number": 40, "zipf": 1.0},
    }  # fmt: skip
    return WorkloadConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_popularity_is_by_rank() -> None:
    requests = generate(config(num_requests=20_000), seed=1, vocab_size=500).requests
    counts = Counter(request.shared_prefix_id for request in requests)
    weights = 1 / np.arange(1, 41)
    expected = 20_000 * weights / weights.sum()
    for rank in (0, 1, 4, 19, 39):
        assert counts[rank] == pytest.approx(expected[rank], abs=5 * expected[rank] ** 0.5)
    alike = generate(config(options={"number": 4, "zipf": 0}), seed=1, vocab_size=500).requests
    assert min(Counter(r.shared_prefix_id for r in alike).values()) > 650


def test_requests_of_a_system_prompt_begin_with_it_and_differ_then() -> None:
    requests = list(generate(config(), seed=2, vocab_size=500).requests)
    heads = {r.shared_prefix_id: r.prompt_ids[:20] for r in requests}
    assert len(set(heads.values())) == len(heads) <= 40
    assert all(r.prompt_ids[:20] == heads[r.shared_prefix_id] for r in requests)
    assert all(r.shared_prefix_len == 20 for r in requests)
    assert len({r.prompt_ids for r in requests}) > 2950


def test_a_request_is_the_same_whenever_it_is_made_and_however_many_there_are() -> None:
    few = generate(config(num_requests=1500), seed=3, vocab_size=500).requests
    many = generate(config(), seed=3, vocab_size=500).requests
    in_order = [many[i] for i in range(1500)]
    assert [few[i] for i in reversed(range(1500))][::-1] == in_order
    assert list(generate(config(), seed=4, vocab_size=500).requests[:5]) != in_order[:5]


@pytest.mark.parametrize("output", ["forced_ids", "forced_length"])
def test_outlines_are_those_of_the_requests(output: str) -> None:
    workload = generate(config(output=output, length_scale=1.5), seed=5, vocab_size=500)
    for outline, request in zip(workload.outlines(), workload.requests, strict=True):
        assert outline.arrival_s == request.arrival_s
        assert outline.num_prompt_tokens == len(request.prompt_ids)
        assert outline.max_tokens == request.max_tokens
        assert outline.true_output_len == request.true_output_len
        assert (request.forced_ids is None) == (output == "forced_length")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"numbers": 3}}, "workload.options.numbers"),
        ({"options": {"number": 0}}, "workload.options.number=0"),
        ({"options": {"number": 2.5}}, "workload.options.number=2.5"),
        ({"options": {"number": True}}, "workload.options.number=True"),
        ({"options": {"zipf": math.nan}}, "workload.options.zipf=nan"),
        ({"options": {"zipf": -1.0}}, "workload.options.zipf=-1.0"),
        ({"shared_len": 0}, "workload.shared_len=0"),
        ({"num_requests": None}, "workload.num_requests=None"),
    ],
)
def test_mistakes_are_told_by_key(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        generate(config(**changes), seed=0, vocab_size=500)

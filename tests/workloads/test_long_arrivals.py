"""Long prompts that arrive while short requests decode."""

from __future__ import annotations

import itertools

import pytest

from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate

OPTIONS = {"number": 3, "prompt_len": 400, "output_len": 5, "first_s": 2.0, "interval_s": 0.5}


def config(**changes: object) -> WorkloadConfig:
    values: dict[str, object] = {
        "name": "long", "generator": "long_arrivals", "num_requests": 10, "lengths": "uniform",
        "prompt_max": 32, "output_min": 40, "output_max": 80, "options": OPTIONS,
    }  # fmt: skip
    return WorkloadConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_short_requests_are_there_first_and_long_prompts_come_one_by_one() -> None:
    requests = generate(config(), seed=3, vocab_size=100).requests
    short, long = requests[:7], requests[7:]
    assert all(r.arrival_s == 0 and len(r.prompt_ids) <= 32 for r in short)
    assert all(40 <= (r.true_output_len or 0) <= 80 for r in short)
    assert [r.arrival_s for r in long] == [2.0, 2.5, 3.0]
    assert {(len(r.prompt_ids), r.true_output_len) for r in long} == {(400, 5)}
    assert len({r.prompt_ids for r in long}) == 3


def test_lengths_scale_and_times_do_not() -> None:
    whole = generate(config(), seed=0, vocab_size=100).requests
    half = generate(config(length_scale=0.5), seed=0, vocab_size=100).requests
    assert [r.arrival_s for r in whole] == [r.arrival_s for r in half]
    assert len(half[-1].prompt_ids) == 200
    assert all(
        abs(len(a.prompt_ids) - 2 * len(b.prompt_ids)) <= 1
        for a, b in zip(whole, half, strict=True)
    )


def test_seeds_change_the_short_requests() -> None:
    found = [
        tuple(len(r.prompt_ids) for r in generate(config(), seed=s, vocab_size=100).requests[:7])
        for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_requests": 3}, "above workload.options.number=3"),
        ({"num_requests": None}, "above workload.options.number=3"),
        ({"max_len": 405}, "below workload.max_len=405"),
        ({"options": {"numbr": 3}}, "workload.options.numbr: choose from number"),
        ({"options": {"number": 0}}, "workload.options.number=0: must be at least 1"),
        ({"options": {"interval_s": "x"}}, "workload.options.interval_s='x'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(config(**changes), seed=0, vocab_size=100)


def test_defaults_are_used_where_no_option_is_given() -> None:
    requests = generate(config(options={}, num_requests=9), seed=0, vocab_size=100).requests
    arrivals = [r.arrival_s for r in requests[1:]]
    assert arrivals[0] == 1.0
    assert all(b - a == 1.0 for a, b in itertools.pairwise(arrivals))

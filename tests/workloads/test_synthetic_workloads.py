"""The synthetic generator: determinism, lengths, bounds, sharing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from harness.engine.request import Workload
from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate, generators
from harness.workloads.lengths import sharegpt_table

VOCAB = 2048
CASES = [
    WorkloadConfig(num_requests=40),
    WorkloadConfig(num_requests=40, lengths="uniform", arrivals="gamma", burstiness=0.5),
    WorkloadConfig(num_requests=40, lengths="alpaca_like", temperature=0.8, arrivals="poisson"),
    WorkloadConfig(num_requests=40, lengths="lognormal", output="free"),
    WorkloadConfig(
        num_requests=40, sharing="system_prompt", shared_len=50, shared_fraction=0.5,
        output="forced_length",
    ),
    WorkloadConfig(num_requests=40, sharing="chat", length_scale=1 / 16, shared_len=64),
]  # fmt: skip


def make(config: WorkloadConfig, seed: int = 0) -> Workload:
    return generate(config, seed=seed, vocab_size=VOCAB, eos_ids=frozenset({7}))


def lengths(workload: Workload) -> np.ndarray:
    return np.array(
        [(len(r.prompt_ids), r.true_output_len or 0) for r in workload.requests], dtype=float
    )


@pytest.mark.parametrize("config", CASES)
def test_same_seed_gives_the_same_requests_and_another_seed_others(config):
    assert make(config, 3) == make(config, 3)
    assert make(config, 3).requests != make(config, 4).requests


@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize("scale", [1.0, 1 / 16, 1 / 200])
def test_outlines_are_those_of_the_requests(config, scale):
    workload = make(replace(config, length_scale=scale, max_len=700, max_output_len=300))
    listed = replace(workload, requests=tuple(workload.requests))
    assert list(workload.outlines()) == list(listed.outlines())


@pytest.mark.parametrize("config", CASES)
def test_more_requests_keep_the_first_ones(config):
    few, many = make(config), make(replace(config, num_requests=1500))
    assert len(few.requests) == 40
    assert len(many.requests) == 1500
    assert many.requests[:40] == few.requests


@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize("scale", [1.0, 1 / 16, 1 / 200])
def test_requests_are_well_formed_and_stay_within_the_bound(config, scale):
    config = replace(config, length_scale=scale, max_len=700)
    bound = round(700 * scale)
    for position, request in enumerate(make(config).requests):
        assert request.request_id == position
        assert 1 <= len(request.prompt_ids) < bound
        assert request.max_tokens == bound - len(request.prompt_ids)
        ids = [*request.prompt_ids, *(request.forced_ids or ())]
        assert all(config.first_regular_id <= token < VOCAB and token != 7 for token in ids)
        if request.true_output_len is None:
            assert config.output == "free"
            assert request.eos_ids == {7}
        else:
            assert 1 <= request.true_output_len <= request.max_tokens


def test_max_output_len_bounds_what_is_asked_and_cuts_what_is_longer():
    free = make(WorkloadConfig(max_output_len=100, length_scale=0.5, output="free"))
    assert {request.max_tokens for request in free.requests} == {50}
    forced = make(WorkloadConfig(max_output_len=100))
    plain = make(WorkloadConfig())
    for cut, whole in zip(forced.requests, plain.requests, strict=True):
        assert cut.prompt_ids == whole.prompt_ids
        assert cut.forced_ids == whole.forced_ids[:100]


def test_lengths_do_not_depend_on_arrivals_sampling_or_output():
    plain = lengths(make(CASES[0]))
    other = replace(CASES[0], arrivals="gamma", temperature=1.0, output="forced_length")
    assert np.array_equal(plain, lengths(make(other)))


def test_sharegpt_table_reproduces_the_published_lengths():
    table = sharegpt_table()
    pairs = np.repeat(table[:, 1:], table[:, 0], axis=0)
    assert len(pairs) == 79_725
    assert pairs.mean(axis=0) == pytest.approx([161.18, 338.00], rel=0.005)
    assert np.median(pairs, axis=0) == pytest.approx([35, 271], abs=2)
    assert np.percentile(pairs, 99, axis=0) == pytest.approx([1460, 1280], rel=0.02)
    assert pairs.sum(axis=1).max() < 2048


@pytest.mark.parametrize(
    ("config", "means", "tolerance"),
    [
        (WorkloadConfig(), (161.2, 338.0), 0.03),
        (WorkloadConfig(lengths="alpaca_like"), (19.31, 58.45), 0.02),
        (WorkloadConfig(lengths="fixed", prompt_len=9, output_len=4), (9, 4), 0),
        (WorkloadConfig(lengths="uniform", prompt_max=64, output_max=32), (40, 24), 0.02),
        (
            WorkloadConfig(lengths="lognormal", prompt_mean=90, prompt_cv=0.5, output_mean=30),
            (90, 30),
            0.03,
        ),
    ],
)
def test_sampled_means(config, means, tolerance):
    sampled = lengths(make(replace(config, num_requests=20_000, output="forced_length")))
    assert sampled.mean(axis=0) == pytest.approx(means, rel=tolerance)


def test_lognormal_spread_is_the_coefficient_of_variation():
    config = WorkloadConfig(
        lengths="lognormal", prompt_mean=200, prompt_cv=0.5, num_requests=20_000, max_len=100_000,
        output="forced_length",
    )  # fmt: skip
    prompts = lengths(make(config))[:, 0]
    assert prompts.std() / prompts.mean() == pytest.approx(0.5, rel=0.05)


def test_synthetic_lengths_are_said_to_be_so():
    assert "synthetic" in make(CASES[2]).description
    assert "synthetic" not in make(CASES[0]).description


def test_system_prompt_is_shared_by_its_fraction_and_precedes_the_same_prompts():
    config = WorkloadConfig(
        num_requests=2000, lengths="alpaca_like", sharing="system_prompt", shared_len=200,
        shared_fraction=0.9, output="forced_length",
    )  # fmt: skip
    requests = make(config).requests
    alone = make(replace(config, sharing="none")).requests
    sharing = [request for request in requests if request.shared_prefix_id >= 0]
    assert len(sharing) / len(requests) == pytest.approx(0.9, abs=0.03)
    assert {request.shared_prefix_len for request in sharing} == {200}
    assert len({request.prompt_ids[:200] for request in sharing}) == 1
    for shared, plain in zip(requests, alone, strict=True):
        assert shared.prompt_ids[shared.shared_prefix_len :] == plain.prompt_ids


def test_chat_turns_extend_prompt_and_answer_of_the_turn_before():
    config = WorkloadConfig(
        num_requests=300, sharing="chat", turns=5, think_s=2.5, arrivals="poisson", shared_len=20
    )
    requests = make(config).requests
    sessions: dict[int, list] = {}
    for request in requests:
        sessions.setdefault(request.session_id, []).append(request)
    assert max(len(turns) for turns in sessions.values()) == 5
    for turns in list(sessions.values())[:-1]:
        assert turns[0].after_request is None
        assert turns[0].shared_prefix_len == 20
        for before, turn in pairwise(turns):
            history = (*before.prompt_ids, *before.forced_ids)
            assert turn.prompt_ids[: len(history)] == history
            assert len(turn.prompt_ids) > len(history)
            assert turn.after_request == before.request_id
            assert turn.arrival_s == 2.5
            assert len(turn.prompt_ids) + len(turn.forced_ids) < 2048
    starts = [turns[0].arrival_s for turns in sessions.values()]
    assert starts == sorted(starts)
    assert starts[-1] > 0


def test_a_chat_session_ends_early_only_where_the_next_turn_would_not_fit():
    config = WorkloadConfig(
        num_requests=9, sharing="chat", turns=8, lengths="fixed", prompt_len=30, output_len=20,
        max_len=170,
    )  # fmt: skip
    assert [r.session_id for r in make(config).requests] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [len(r.prompt_ids) for r in make(config).requests[:3]] == [30, 80, 130]


def test_a_chat_cut_to_its_last_tokens_goes_on():
    config = WorkloadConfig(
        num_requests=9, sharing="chat", turns=8, lengths="fixed", prompt_len=60, output_len=40,
        max_len=400, max_prompt_len=200, shared_len=20, length_scale=0.5,
    )  # fmt: skip
    requests = make(config).requests
    assert [r.session_id for r in requests] == [0] * 8 + [1]
    assert [len(r.prompt_ids) for r in requests[:4]] == [40, 90, 100, 100]
    assert [r.shared_prefix_len for r in requests[:4]] == [10, 10, 0, 0]
    for before, turn in pairwise(requests[1:8]):
        history = (*before.prompt_ids, *before.forced_ids)
        assert turn.prompt_ids[:70] == history[-70:]


def test_closed_loop_is_handed_on():
    assert make(WorkloadConfig(arrivals="closed_loop", concurrency=5)).closed_loop == 5
    assert make(WorkloadConfig()).closed_loop is None


def test_sampling_seeds_differ_between_requests():
    requests = make(CASES[2]).requests
    assert len({request.sampling.seed for request in requests}) == len(requests)
    assert {request.sampling.temperature for request in requests} == {0.8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": "sharegtp"}, "did you mean sharegpt"),
        ({"arrivals": "poison"}, "did you mean poisson"),
        ({"output": "freee"}, "did you mean free"),
        ({"rate": 0}, r"workload\.rate=0: must be above 0"),
        ({"num_requests": 0}, r"workload\.num_requests=0: must be at least 1"),
        ({"shared_fraction": 1.5}, r"shared_fraction=1\.5"),
        ({"top_p": 0}, r"top_p=0"),
        ({"prompt_min": 20, "prompt_max": 10}, "prompt_min=20 is above"),
        ({"sharing": "system_prompt"}, r"set workload\.shared_len"),
        ({"sharing": "chat", "output": "free"}, r"set workload\.output=forced_ids"),
        ({"max_prompt_len": 64}, r"set workload\.sharing=chat"),
    ],
)
def test_bad_values_are_refused_with_the_way_out(values, message):
    with pytest.raises(ValueError, match=message):
        WorkloadConfig(**values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WorkloadConfig(generator="synthetc"), "did you mean synthetic"),
        (WorkloadConfig(arrivals="trace"), "no trace times"),
        (WorkloadConfig(num_requests=None), r"workload\.num_requests=null"),
        (WorkloadConfig(max_len=None), r"workload\.max_len=null"),
        (WorkloadConfig(lengths="fixed", prompt_len=3000), r"raise workload\.max_len"),
        (WorkloadConfig(first_regular_id=VOCAB - 1), "first_regular_id"),
    ],
)
def test_what_cannot_be_generated_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make(config)


def test_generators_are_discovered():
    assert {"synthetic", "trace"} <= set(generators())

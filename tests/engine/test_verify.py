"""Whether speculative decoding leaves the tokens, or their distribution, as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from harness.engine.device.sampler import sample, uniform
from harness.engine.device.verify import Verified, draw_draft, filtered_probs, verify
from harness.engine.request import SamplingParams

VOCAB = 6
TRIALS = 20_000
NEVER = 1e-6  # p-value below which a distribution is held to be another
Emitted = list[tuple[int, ...]]


def _logits(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn((*shape, VOCAB), generator=torch.Generator().manual_seed(seed))


# ---- the distribution that must come out, and the test of it

# A model with a memory of one token: row t of these are its logits after token t.
TARGET = _logits(VOCAB, seed=1)
DRAFT = _logits(VOCAB, seed=2)
FIRST = 0  # the token before the output


def _params(trials: int, **options: float) -> list[SamplingParams]:
    options = {"temperature": 1.0, **options}
    return [SamplingParams(seed=seed, **options) for seed in range(trials)]


def _draw_drafts(params: list[SamplingParams], k: int) -> tuple[Tensor, Tensor]:
    """Drafts (trials, k) of the draft model and their distributions (trials, k, vocabulary)."""
    last = torch.full((len(params),), FIRST)
    ids, probs = [], []
    for position in range(k):
        drafted = draw_draft(DRAFT[last], params, [position] * len(params))
        last = torch.tensor(drafted.token_ids)
        ids.append(last)
        probs.append(drafted.probs)
    return torch.stack(ids, 1), torch.stack(probs, 1)


def _target_logits(drafts: Tensor) -> Tensor:
    """What one forward over the drafts gives: (trials, k + 1, vocabulary)."""
    before = torch.cat([torch.full((len(drafts), 1), FIRST), drafts], 1)
    return TARGET[before]


def _speculate(params: list[SamplingParams], k: int = 2) -> Emitted:
    """At least two tokens of each trial; those that need it go on without drafts."""
    drafts, probs = _draw_drafts(params, k)
    got = verify(
        _target_logits(drafts).reshape(-1, VOCAB),
        drafts.tolist(),
        list(probs),
        params,
        [0] * len(params),
    )
    return _completed([v.token_ids for v in got], params)


def _completed(tokens: Emitted, params: list[SamplingParams]) -> Emitted:
    last = torch.tensor([t[0] for t in tokens])
    second = sample(TARGET[last], params, [1] * len(params)).token_ids
    return [t[:2] if len(t) > 1 else (t[0], s) for t, s in zip(tokens, second, strict=True)]


def _truth(options: SamplingParams) -> np.ndarray:
    """P(first, second) of the target alone."""
    p = filtered_probs(TARGET, [options] * VOCAB).numpy()
    return p[FIRST][:, None] * p


def _p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Chi-square of goodness of fit; rare cells together, 0 where the impossible happened."""
    counts, expected = counts.ravel(), probs.ravel() * counts.sum()
    if counts[probs.ravel() == 0].any():
        return 0.0
    counts, expected = counts[expected > 0], expected[expected > 0]
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if len(counts) == 1:
        return 1.0
    return float(stats.chisquare(counts, expected).pvalue)


def _fits(emitted: Emitted, options: SamplingParams) -> tuple[bool, bool]:
    """Whether the first token, and the first two together, are the target's."""
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, tuple(np.array(emitted).T), 1)
    truth = _truth(options)
    return (
        _p_value(counts.sum(1), truth.sum(1)) > NEVER,
        _p_value(counts, truth) > NEVER,
    )


FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.4, "top_k": 4, "top_p": 0.8},
]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_drawn_drafts_leave_the_distribution_as_it_was(options: dict[str, float], k: int) -> None:
    params = _params(TRIALS, **options)
    assert _fits(_speculate(params, k), params[0]) == (True, True)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_fixed_drafts_leave_the_distribution_as_it_was(options: dict[str, float]) -> None:
    params = _params(TRIALS, **options)
    best = TARGET[FIRST].topk(3).indices.tolist()
    for draft in (best[0], best[2]):
        drafts = torch.tensor([[draft, 1]]).repeat(TRIALS, 1)
        logits = _target_logits(drafts).reshape(-1, VOCAB)
        got = verify(logits, drafts.tolist(), [None] * TRIALS, params, [0] * TRIALS)
        assert _fits(_completed([v.token_ids for v in got], params), params[0]) == (True, True)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_a_point_mass_may_be_given_as_probabilities(options: dict[str, float]) -> None:
    params = _params(TRIALS, **options)
    drafts = torch.tensor([[int(TARGET[FIRST].topk(2).indices[1]), 1]]).repeat(TRIALS, 1)
    probs = torch.nn.functional.one_hot(drafts, VOCAB).double()
    logits = _target_logits(drafts).reshape(-1, VOCAB)
    got = verify(logits, drafts.tolist(), list(probs), params, [0] * TRIALS)
    assert _fits(_completed([v.token_ids for v in got], params), params[0]) == (True, True)


def test_drafts_are_accepted_as_often_as_the_overlap_allows() -> None:
    """P(accept) = sum of min(p, q): Leviathan et al. (2023), theorem 3.5."""
    params = _params(TRIALS)
    drafts, probs = _draw_drafts(params, 1)
    logits = _target_logits(drafts).reshape(-1, VOCAB)
    got = verify(logits, drafts.tolist(), list(probs), params, [0] * TRIALS)
    p, q = TARGET[FIRST].double().softmax(-1), DRAFT[FIRST].double().softmax(-1)
    overlap = float(torch.minimum(p, q).sum())
    assert 0.2 < overlap < 0.8
    rate = np.mean([v.num_accepted for v in got])
    assert abs(rate - overlap) < 5 * 0.5 / TRIALS**0.5


def test_one_request_draws_afresh_at_every_position() -> None:
    """One seed, as many positions: what many seeds give at one position."""
    params = [SamplingParams(temperature=1.0, seed=5)] * TRIALS
    positions = list(range(TRIALS))
    drafted = draw_draft(DRAFT[FIRST].repeat(TRIALS, 1), params, positions)
    logits = _target_logits(torch.tensor(drafted.token_ids)[:, None]).reshape(-1, VOCAB)
    drafts = [[token] for token in drafted.token_ids]
    got = verify(logits, drafts, list(drafted.probs[:, None]), params, positions)
    counts = np.bincount([v.token_ids[0] for v in got], minlength=VOCAB)
    assert _p_value(counts, _truth(params[0]).sum(1)) > NEVER


# ---- wrong rules, which the test above must tell from the right one

Rule = Callable[[np.ndarray, np.ndarray, int, np.ndarray], tuple[bool, np.ndarray]]


def _right(p: np.ndarray, q: np.ndarray, d: int, u: np.ndarray) -> tuple[bool, np.ndarray]:
    return u[0] * q[d] < p[d], np.maximum(p - q, 0)


def _always(p: np.ndarray, q: np.ndarray, d: int, u: np.ndarray) -> tuple[bool, np.ndarray]:
    return True, p


def _only_likelier(p: np.ndarray, q: np.ndarray, d: int, u: np.ndarray) -> tuple[bool, np.ndarray]:
    return bool(p[d] >= q[d]), np.maximum(p - q, 0)


def _not_the_residual(
    p: np.ndarray, q: np.ndarray, d: int, u: np.ndarray
) -> tuple[bool, np.ndarray]:
    return u[0] * q[d] < p[d], p


def _by_rule(rule: Rule, params: list[SamplingParams], k: int = 2) -> Emitted:
    """Speculative sampling one token at a time, by `rule`."""
    drafts, probs = _draw_drafts(params, k)
    rng = np.random.default_rng(3)
    emitted = []
    p_after = filtered_probs(TARGET, params[:1] * VOCAB).numpy()
    for ids, q in zip(drafts.tolist(), probs.numpy(), strict=True):
        tokens: list[int] = []
        before = FIRST
        for j, d in enumerate(ids):
            accepted, rest = rule(p_after[before], q[j], d, rng.random(1))
            tokens.append(d if accepted else int(rng.choice(VOCAB, p=rest / rest.sum())))
            before = tokens[-1]
            if not accepted:
                break
        emitted.append(tuple(tokens))
    return _completed(emitted, params)


def test_the_statistics_accept_the_right_rule_by_itself() -> None:
    params = _params(TRIALS)
    assert _fits(_by_rule(_right, params), params[0]) == (True, True)


@pytest.mark.parametrize("rule", [_always, _only_likelier, _not_the_residual])
@pytest.mark.parametrize("options", [FILTERS[0], FILTERS[4]], ids=str)
def test_the_statistics_reject_a_wrong_rule(rule: Rule, options: dict[str, float]) -> None:
    params = _params(TRIALS, **options)
    assert _fits(_by_rule(rule, params), params[0]) == (False, False)


def test_the_statistics_reject_a_draft_that_shares_its_luck_with_acceptance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = _params(TRIALS)
    monkeypatch.setattr("harness.engine.device.verify._ACCEPT", 1)
    monkeypatch.setattr("harness.engine.device.verify._DRAW_DRAFT", 1)
    assert _fits(_speculate(params), params[0]) == (False, False)


# ---- exact properties


def _mixed(chunks: int, seed: int) -> tuple[Tensor, list[list[int]], list[SamplingParams]]:
    rng = random.Random(seed)
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 3]),
            top_p=rng.choice([1.0, 0.8]),
            seed=rng.randrange(2**70),
        )
        for _ in range(chunks)
    ]
    drafts = [[rng.randrange(VOCAB) for _ in range(rng.randrange(5))] for _ in range(chunks)]
    return _logits(sum(len(d) + 1 for d in drafts), seed=seed), drafts, params


def test_what_was_not_drawn_gives_the_tokens_of_plain_decoding() -> None:
    """Greedy and sampled alike: the model's own token decides, the draft only saves steps."""
    logits, drafts, params = _mixed(300, seed=4)
    positions = [i % 90 for i in range(300)]
    got = verify(logits, drafts, [None] * 300, params, positions)
    start, most = 0, 0
    for chunk, (result, ids) in enumerate(zip(got, drafts, strict=True)):
        tokens, margins = [], []
        for j in range(len(ids) + 1):
            one = sample(logits[start + j][None], [params[chunk]], [positions[chunk] + j])
            tokens += one.token_ids
            margins += one.margins
            if j == len(ids) or ids[j] != tokens[-1]:
                break
        assert result == Verified(tuple(tokens), len(tokens) - 1, tuple(margins))
        start += len(ids) + 1
        most = max(most, result.num_accepted)
    assert most >= 2


def test_greedy_ignores_what_a_draft_was_drawn_from() -> None:
    logits = _logits(4, seed=5)
    best = logits.argmax(-1).tolist()
    probs = torch.full((3, VOCAB), 1 / VOCAB)
    (got,) = verify(logits, [best[:3]], [probs], [SamplingParams()], [0])
    assert (got.token_ids, got.num_accepted) == (tuple(best), 3)
    wrong = [best[0], (best[1] + 1) % VOCAB, best[2]]
    (got,) = verify(logits, [wrong], [probs], [SamplingParams()], [0])
    assert (got.token_ids, got.num_accepted) == (tuple(best[:2]), 1)
    assert len(got.margins) == 2


def test_a_draft_like_the_model_is_always_accepted_and_the_last_token_is_plain() -> None:
    params = _params(500, temperature=0.8)
    logits = _logits(500, 3, seed=6)
    ids, probs = [], []
    for j in range(2):
        drafted = draw_draft(logits[:, j], params, [j] * 500)
        ids.append(drafted.token_ids)
        probs.append(drafted.probs)
    drafts = [list(pair) for pair in zip(*ids, strict=True)]
    got = verify(logits.reshape(-1, VOCAB), drafts, list(torch.stack(probs, 1)), params, [0] * 500)
    assert {v.num_accepted for v in got} == {2}
    plain = sample(logits[:, 2].contiguous(), params, [2] * 500).token_ids
    assert [v.token_ids[2] for v in got] == plain


def test_results_do_not_depend_on_the_batch() -> None:
    n = 60
    logits, drafts, params = _mixed(n, seed=7)
    rng = random.Random(8)
    probs: list[Tensor | None] = [
        _logits(len(d), seed=i).double().softmax(-1) if rng.random() < 0.7 else None
        for i, d in enumerate(drafts)
    ]
    positions = [rng.randrange(1000) for _ in range(n)]
    pieces = list(logits.split([len(d) + 1 for d in drafts]))

    def run(which: Sequence[int]) -> list[Verified]:
        return verify(
            torch.cat([pieces[i] for i in which]),
            [drafts[i] for i in which],
            [probs[i] for i in which],
            [params[i] for i in which],
            [positions[i] for i in which],
        )

    alone = [run([i])[0] for i in range(n)]
    order = list(range(n))
    rng.shuffle(order)
    assert run(order) == [alone[i] for i in order]
    other = [draw_draft(pieces[i][:1], [params[i]], [positions[i]]).token_ids[0] for i in order]
    rows = torch.cat([pieces[i][:1] for i in order])
    together = draw_draft(rows, [params[i] for i in order], [positions[i] for i in order])
    assert together.token_ids == other


def test_logits_are_left_as_they_were() -> None:
    logits, drafts, params = _mixed(20, seed=9)
    before = logits.clone()
    probs = [torch.full((len(d), VOCAB), 1 / VOCAB) for d in drafts]
    verify(logits, drafts, probs, params, [0] * 20)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, *FILTERS], ids=str)
def test_filtered_probabilities_are_those_the_sampler_draws_from(
    options: dict[str, float],
) -> None:
    logits = _logits(1, seed=10)
    params = _params(1, **options) * TRIALS
    tokens = sample(logits.repeat(TRIALS, 1), params, list(range(TRIALS))).token_ids
    counts = np.bincount(tokens, minlength=VOCAB)
    probs = filtered_probs(logits, params[:1])
    assert probs.dtype == torch.float64
    assert probs.sum() == pytest.approx(1)
    assert _p_value(counts, probs[0].numpy()) > NEVER
    assert (counts > 0).sum() == (probs > 0).sum()


def test_equal_best_logits_and_top_p_zero_keep_the_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.0)):
        assert filtered_probs(logits, [params]).tolist() == [[0.0, 1.0, 0.0]]


def test_the_streams_are_apart() -> None:
    from harness.engine.device import verify as module

    seeds, positions = list(range(50)) * 20, [p for p in range(20) for _ in range(50)]
    streams = [
        uniform(seeds, positions),
        *(module._uniforms(purpose, seeds, positions) for purpose in (1, 2, 3)),
    ]
    assert len({module._DRAW_DRAFT, module._ACCEPT, module._RESAMPLE}) == 3
    correlation = np.corrcoef(streams) - np.eye(4)
    assert np.abs(correlation).max() < 5 / 1000**0.5
    assert len(set(np.concatenate(streams).tolist())) == 4000


def test_no_chunks_and_no_drafts() -> None:
    assert verify(torch.empty((0, VOCAB)), [], [], [], []) == []
    (got,) = verify(_logits(1), [[]], [None], [SamplingParams()], [0])
    assert got.num_accepted == 0
    assert len(got.token_ids) == len(got.margins) == 1


def test_rows_and_vocabularies_that_do_not_match_are_refused() -> None:
    params = [SamplingParams(temperature=1.0)]
    with pytest.raises(ValueError, match="3 rows of logits for 1 chunks whose drafts need 2"):
        verify(_logits(3), [[1]], [None], params, [0])
    with pytest.raises(ValueError, match=r"\(1, 4\), the model's \(1, 6\)"):
        verify(_logits(2), [[1]], [torch.full((1, 4), 0.25)], params, [0])

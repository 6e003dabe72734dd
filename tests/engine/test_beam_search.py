"""Beam search decides as transformers' own `generate(num_beams=width)` does."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from harness.engine.scheduling.beam_search import (
    BeamParams,
    BeamSearch,
    BeamStep,
    Candidates,
    Hypothesis,
)

WIDTHS = (2, 3, 4, 6)
LENGTH_PENALTIES = (0.0, 1.0, 2.0, -1.0)
EARLY_STOPPING: tuple[bool | Literal["never"], ...] = (False, True, "never")
SETTINGS = list(itertools.product(LENGTH_PENALTIES, EARLY_STOPPING))
VOCAB = 64
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "init_std": 0.4,
    },
}


# --- one search of ours, one of transformers -----------------------------------------------------


@dataclass
class Outcome:
    """What both sides must agree on: the hypotheses, and after how many forwards they came."""

    hypotheses: list[Hypothesis]
    num_forwards: int


@torch.inference_mode()
def searched(
    model: Any, prompt: Sequence[int], params: BeamParams, max_tokens: int, eos_ids: Iterable[int]
) -> Outcome:
    """Our search; log-probabilities from full forwards of all beams at once."""
    search = BeamSearch(params, max_tokens, frozenset(eos_ids))
    beams = [list(prompt)] * params.width  # a batch of `width` from the start, as in transformers
    num_beams, num_forwards, done = 1, 0, False
    while not done:
        ids = torch.tensor(beams)
        output = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1
        )
        top = output.logits[:, -1].float().log_softmax(-1).topk(search.num_candidates)
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        step = search.step([Candidates(*row) for row in rows][:num_beams])
        num_forwards, num_beams, done = num_forwards + 1, params.width, step.done
        if not done:
            beams = [
                [*beams[p], token] for p, token in zip(step.parents, step.token_ids, strict=True)
            ]
    return Outcome(list(search.hypotheses()), num_forwards)


@torch.inference_mode()
def generated(
    model: Any, prompt: Sequence[int], params: BeamParams, max_tokens: int, eos_ids: Iterable[int]
) -> Outcome:
    """The same search by `generate`."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        use_cache=False,
        num_beams=params.width,
        num_return_sequences=params.width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    rows = [row[len(prompt) :] for row in output.sequences.tolist()]
    return Outcome(
        [
            Hypothesis(tuple(row[:length]), score)
            for row, length, score in zip(
                rows, lengths, output.sequences_scores.tolist(), strict=True
            )
        ],
        len(output.scores),
    )


# --- a model of pure tables, whose log-probabilities no batch can change -------------------------


class TableModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Logits are a table's row for the position and the last two tokens."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, seed: int, sharpness: float) -> None:
        super().__init__(PretrainedConfig(vocab_size=VOCAB, eos_token_id=None, pad_token_id=0))
        generator = torch.Generator().manual_seed(seed)
        table = sharpness * torch.randn(211, VOCAB, generator=generator)
        self.table = torch.nn.Parameter(table)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutput:
        last, before = input_ids[:, -1:], input_ids[:, -2:-1]
        row = (last * 31 + before * 17 + input_ids.shape[1] * 7) % len(self.table)
        return CausalLMOutput(logits=self.table[row])


@pytest.mark.parametrize("num_eos", [0, 1, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_same_decisions_and_scores_as_transformers_on_tables(width: int, num_eos: int) -> None:
    rng = random.Random(width * 10 + num_eos)
    lengths: Counter[int] = Counter()
    for case, (length_penalty, early_stopping) in enumerate(SETTINGS * 6):
        model = TableModel(seed=rng.randrange(10**6), sharpness=rng.choice([0.3, 1.0, 2.5]))
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(2, 5))]
        eos_ids = rng.sample(range(VOCAB), num_eos)
        with torch.no_grad():  # likely enough that every beam meets one sooner or later
            model.table[:, eos_ids] += rng.choice([0.0, 1.0, 2.0])
        params = BeamParams(width, length_penalty, early_stopping)
        max_tokens = rng.choice([1, 2, 7, 16])
        ours = searched(model, prompt, params, max_tokens, eos_ids)
        assert ours == generated(model, prompt, params, max_tokens, eos_ids), (case, params)
        lengths.update(max_tokens - len(h.token_ids) for h in ours.hypotheses)
    if num_eos:
        assert sum(n for short_by, n in lengths.items() if short_by) > width
    else:
        assert set(lengths) == {0}


def test_width_1_is_greedy_decoding() -> None:
    for seed, early_stopping in itertools.product(range(8), EARLY_STOPPING):
        model = TableModel(seed, sharpness=1.0)
        with torch.no_grad():
            model.table[:, 9] += 1.5
        search = searched(model, [1, 2], BeamParams(1, 1.0, early_stopping), 12, {9})
        ids = torch.tensor([[1, 2]])
        greedy = model.generate(
            ids, max_new_tokens=12, eos_token_id=9, pad_token_id=0, do_sample=False, use_cache=False
        )
        assert [list(h.token_ids) for h in search.hypotheses] == [greedy[0, 2:].tolist()]


# --- real architectures --------------------------------------------------------------------------


@cache
def _model(family: str) -> Any:
    torch.manual_seed(5)
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    shape = {"vocab_size": VOCAB, "tie_word_embeddings": False, **FAMILIES[family], **ends}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def _met_tokens(family: str, prompt: tuple[int, ...]) -> list[int]:
    """Tokens of the free beams of a prompt, the most frequent first."""
    free = searched(_model(family), prompt, BeamParams(4), 12, ())
    counts = Counter(token for h in free.hypotheses for token in h.token_ids[1:])
    return [token for token, _ in counts.most_common()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_for_token_what_generate_gives(family: str, width: int) -> None:
    model, rng = _model(family), random.Random(7)
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in (1, 6, 13)]
    num_short = 0
    for (i, setting), (j, num_eos) in itertools.product(enumerate(SETTINGS), enumerate((0, 1, 4))):
        prompt = prompts[(i + j) % len(prompts)]
        eos_ids = _met_tokens(family, prompt)[:num_eos]
        params = BeamParams(width, *setting)
        ours = searched(model, prompt, params, 12, eos_ids)
        theirs = generated(model, prompt, params, 12, eos_ids)
        assert [h.token_ids for h in ours.hypotheses] == [h.token_ids for h in theirs.hypotheses]
        scores = [h.score for h in theirs.hypotheses]
        assert [h.score for h in ours.hypotheses] == pytest.approx(scores, rel=1e-5)
        assert ours.num_forwards == theirs.num_forwards, (params, eos_ids)
        num_short += sum(len(h.token_ids) < 12 for h in ours.hypotheses)
    assert num_short > len(SETTINGS)  # the end-of-sequence tokens were met


# --- by hand -------------------------------------------------------------------------------------


def _candidates(*rows: Mapping[int, float]) -> list[Candidates]:
    """One entry a beam, from probabilities by token."""
    return [Candidates(list(row), [math.log(p) for p in row.values()]) for row in rows]


def test_best_sequence_is_not_the_greedy_one() -> None:
    search = BeamSearch(BeamParams(2), max_tokens=3, eos_ids=frozenset())
    step = search.step(_candidates({0: 0.5, 1: 0.4, 2: 0.06, 3: 0.04}))
    assert step == BeamStep((0, 0), (0, 1), False)
    step = search.step(  # 0.5 x 0.4 = 0.2 against 0.4 x 0.9 = 0.36: the beams change places
        _candidates({7: 0.4, 8: 0.35, 9: 0.15, 6: 0.1}, {5: 0.9, 6: 0.05, 7: 0.03, 8: 0.02})
    )
    assert step == BeamStep((1, 0), (5, 7), False)
    step = search.step(  # 0.36 x 0.6 and 0.36 x 0.3 are both above 0.2 x 0.5
        _candidates({3: 0.6, 4: 0.3, 5: 0.06, 6: 0.04}, {3: 0.5, 4: 0.3, 5: 0.1, 6: 0.1})
    )
    assert step == BeamStep((), (), True)
    first, second = search.hypotheses()
    assert (first.token_ids, second.token_ids) == ((1, 5, 3), (1, 5, 4))
    assert first.score == pytest.approx(math.log(0.216) / 3, rel=1e-6)
    assert second.score == pytest.approx(math.log(0.108) / 3, rel=1e-6)


def test_only_the_best_width_candidates_may_finish() -> None:
    search = BeamSearch(BeamParams(2, 0.0), max_tokens=3, eos_ids=frozenset({9}))
    step = search.step(_candidates({1: 0.5, 2: 0.2, 9: 0.19, 3: 0.11}))
    assert step == BeamStep((0, 0), (1, 2), False)  # 9 came third: neither finished nor running
    step = search.step(
        _candidates({9: 0.6, 4: 0.2, 5: 0.1, 6: 0.1}, {7: 0.4, 8: 0.3, 9: 0.2, 6: 0.1})
    )
    assert step == BeamStep((0, 1), (4, 7), False)  # 0.3 finished; 0.1 and 0.08 go on
    step = search.step(
        _candidates({4: 0.5, 5: 0.3, 6: 0.1, 7: 0.1}, {9: 0.9, 5: 0.05, 6: 0.03, 7: 0.02})
    )
    assert step.done  # at the limit 9 (0.072) and 4 (0.05) finish alike, behind 0.3
    first, second = search.hypotheses()
    assert (first.token_ids, second.token_ids) == ((1, 9), (2, 7, 9))
    assert (math.exp(first.score), math.exp(second.score)) == pytest.approx((0.3, 0.072))


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping", "done"),
    [  # hypotheses: 0.4 of 1 token, 0.18 of 2; best beam: 0.1 of 2, of at most 10
        (1.0, True, True),
        (1.0, False, True),  # ln 0.1 / 2 = -1.15, no better than ln 0.4 = -0.92
        (1.0, "never", False),  # ln 0.1 / 10 = -0.23 would be
        (0.0, "never", True),  # a sum only falls
        (-1.0, "never", True),
        (2.0, True, True),
        (2.0, False, False),  # ln 0.1 / 4 = -0.58
        (2.0, "never", False),
    ],
)
def test_when_a_full_set_of_hypotheses_ends_the_search(
    length_penalty: float, early_stopping: bool | Literal["never"], done: bool
) -> None:
    params = BeamParams(2, length_penalty, early_stopping)
    search = BeamSearch(params, max_tokens=10, eos_ids=frozenset({9}))
    assert not search.step(_candidates({9: 0.4, 1: 0.3, 2: 0.2, 3: 0.1})).done
    step = search.step(
        _candidates({9: 0.6, 4: 0.2, 5: 0.1, 6: 0.1}, {7: 0.5, 8: 0.2, 6: 0.15, 5: 0.15})
    )
    assert step == (BeamStep((), (), True) if done else BeamStep((1, 0), (7, 4), False))
    if done:
        scores = {
            (9,): math.log(0.4),
            (1, 9): math.log(0.18) / 2**length_penalty,
        }
        hypotheses = search.hypotheses()
        assert {h.token_ids: h.score for h in hypotheses} == pytest.approx(scores, rel=1e-6)
        assert hypotheses[0].score >= hypotheses[1].score


def test_a_better_hypothesis_displaces_the_worst() -> None:
    search = BeamSearch(BeamParams(2, 2.0), max_tokens=4, eos_ids=frozenset({9}))
    search.step(_candidates({9: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}))
    search.step(_candidates({9: 0.6, 4: 0.2, 5: 0.1, 6: 0.1}, {7: 0.5, 8: 0.2, 6: 0.15, 5: 0.15}))
    step = search.step(  # ln 0.09 / 9 = -0.27 puts (9,) out; ln 0.03 / 9 = -0.39 beats (1, 9)
        _candidates({9: 0.9, 4: 0.05, 5: 0.03, 6: 0.02}, {5: 0.5, 6: 0.3, 7: 0.1, 8: 0.1})
    )
    assert step == BeamStep((1, 1), (5, 6), False)
    row = {1: 0.5, 2: 0.3, 3: 0.1, 4: 0.1}
    assert search.step(_candidates(row, row)).done  # ln 0.015 / 16 = -0.26 puts (1, 9) out
    assert [h.token_ids for h in search.hypotheses()] == [(1, 4, 5, 1), (2, 7, 9)]


@pytest.mark.parametrize("num_equal", [1, 2, 3])
def test_equal_scores_keep_the_order_they_came_in(num_equal: int) -> None:
    search = BeamSearch(BeamParams(4), max_tokens=2, eos_ids=frozenset())
    tokens = (4, 2, 9, 1, 3, 5, 8, 6)
    assert search.step(_candidates(dict.fromkeys(tokens, 0.05))).token_ids == tokens[:4]
    row = dict.fromkeys(tokens[:num_equal], 0.1) | dict.fromkeys(tokens[num_equal:], 0.05)
    assert search.step(_candidates(*[row] * 4)).done
    ends = [(first, last) for first in tokens[:4] for last in tokens[:num_equal]]
    assert [h.token_ids for h in search.hypotheses()] == ends[:4]


def test_a_beam_that_can_only_draw_level_is_not_waited_for() -> None:
    search = BeamSearch(BeamParams(2), max_tokens=9, eos_ids=frozenset({8, 9}))
    assert search.step(_candidates({9: 0.25, 8: 0.25, 1: 0.25, 2: 0.1, 3: 0.1, 4: 0.05})).done


@pytest.mark.parametrize(("width", "num_eos", "needed"), [(2, 0, 4), (3, 1, 6), (4, 3, 16)])
def test_candidates_needed(width: int, num_eos: int, needed: int) -> None:
    search = BeamSearch(BeamParams(width), 5, frozenset(range(num_eos)))
    assert search.num_candidates == needed
    short = Candidates(range(needed - 1), [-1.0] * (needed - 1))
    with pytest.raises(ValueError, match=rf"has {needed - 1} candidates.* needs {needed}: .*lower"):
        search.step([short])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width 0 is below 1: use"),
        ({"width": 2, "length_penalty": math.inf}, "length_penalty inf is not finite: use 0.0"),
        ({"width": 2, "length_penalty": math.nan}, "length_penalty nan is not finite: use 0.0"),
        ({"width": 2, "early_stopping": "always"}, "'always' is unknown: use False, True or"),
        ({"width": 2, "early_stopping": None}, "None is unknown: use False, True or"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamParams(**fields)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens 0 is below 1"):
        BeamSearch(BeamParams(2), 0, frozenset())
    with pytest.raises(ValueError, match=r"1000 \*\* 11\.0 exceeds 1e\+30.*lower max_tokens"):
        BeamSearch(BeamParams(2, -11.0), 1000, frozenset())
    search = BeamSearch(BeamParams(2), 2, frozenset())
    row = {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1}
    with pytest.raises(ValueError, match="got candidates of 2 sequences, but the search has 1"):
        search.step(_candidates(row, row))
    search.step(_candidates(row))
    with pytest.raises(ValueError, match="got candidates of 1 sequences, but the search has 2"):
        search.step(_candidates(row))
    with pytest.raises(ValueError, match="not over after 1 of at most 2 steps"):
        search.hypotheses()
    assert search.step(_candidates(row, row)).done
    with pytest.raises(ValueError, match="the search is over"):
        search.step(_candidates(row, row))

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from experiments.commands.byte_models import (
    CONTEXT,
    DRAFT,
    TrainedPair,
    acceptance_by_k,
    build,
    byte_tokenizer,
    held_out_prompts,
    main,
    shipped_text,
    split_text,
    train,
)
from harness.engine.device.model_shape import model_preset
from harness.engine.device.models import load_model

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("byte_models")


@pytest.fixture(scope="module")
def pair(folder: Path) -> TrainedPair:
    return train(folder, shipped_text(), steps=STEPS, seed=3)


def _load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path)


def test_the_shipped_text_is_plain_and_long_enough() -> None:
    text = shipped_text()
    assert text.isascii()
    assert 38_000 < len(text) < 80_000
    paragraphs = [p for p in text.split("\n") if p]
    assert len(set(paragraphs)) == len(paragraphs)


def test_both_checkpoints_load_as_hub_models(pair: TrainedPair) -> None:
    tokenizer = byte_tokenizer()
    for trained in (pair.target, pair.draft):
        loaded = load_model(model_preset("hub", path=str(trained.path)))
        assert loaded.shape.vocab_size == tokenizer.vocab_size == 259
        assert loaded.shape.num_parameters == trained.num_parameters
        assert loaded.lean is not None
    assert 1e6 < pair.target.num_parameters < 2e6
    assert pair.draft.num_parameters < pair.target.num_parameters / 10


def test_what_was_trained_lies_beside_the_weights(pair: TrainedPair, folder: Path) -> None:
    saved = json.loads((folder / "training.json").read_text())
    assert saved["target"]["steps"] == pair.target.steps == STEPS
    assert saved["text_sha256"] == pair.text_sha256
    assert saved["text_bytes"] == len(shipped_text())
    assert saved["draft"]["held_out_loss"] == pair.draft.held_out_loss


def test_a_few_steps_already_teach_something(pair: TrainedPair) -> None:
    untrained = torch.log(torch.tensor(259.0))
    assert pair.target.held_out_loss < untrained - 0.3
    assert pair.draft.held_out_loss < untrained - 0.1


def test_steps_and_seed_decide_the_weights(pair: TrainedPair, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    again = train(tmp_path / "again", shipped_text(), steps=STEPS, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    first, second = (_load(p.draft.path).state_dict() for p in (pair, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "model.embed_tokens.weight"
    one, other = (build(DRAFT, seed).state_dict()[name] for seed in (3, 4))
    assert not torch.equal(one, other)
    assert again.target.held_out_loss == pair.target.held_out_loss


def test_seconds_end_the_training_early(tmp_path: Path) -> None:
    pair = train(tmp_path, shipped_text(), steps=10_000, seconds=0.2)
    assert 1 <= pair.draft.steps < 10_000


def test_prompts_come_from_what_was_held_out() -> None:
    trained, held_out = split_text(shipped_text())
    assert byte_tokenizer().decode([*trained, *held_out]) == shipped_text()
    prompts = held_out_prompts(shipped_text(), 5, 40)
    starts = [i for p in prompts for i in range(len(held_out)) if held_out[i : i + 40] == p]
    assert len(starts) == 5
    assert (starts[0], starts[-1]) == (0, len(held_out) - 40)
    with pytest.raises(ValueError, match="prompt_len=9999999"):
        held_out_prompts(shipped_text(), 1, 9_999_999)


def test_a_short_text_is_refused_with_the_length_that_is_needed(tmp_path: Path) -> None:
    needed = 10 * (CONTEXT + 1)
    with pytest.raises(ValueError, match=f"100 bytes is too short: give at least {needed}"):
        train(tmp_path, "x" * 100, steps=1)
    path = tmp_path / "short.txt"
    path.write_text("x" * 100)
    with pytest.raises(SystemExit, match="too short"):
        main(["--text", str(path), "--out", str(tmp_path)])


def _accepted_by_hand(
    target: Any, draft: Any, prompt: list[int], length: int, k: int
) -> tuple[int, int]:
    """(accepted, proposed) of one sequence, decoded step by step."""

    def greedy(model: Any, ids: list[int]) -> int:
        with torch.inference_mode():
            return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())

    ids, accepted, proposed = list(prompt), 0, 0
    end = len(prompt) + length
    while len(ids) < end:
        drafts: list[int] = []
        for _ in range(min(k, end - len(ids))):
            drafts.append(greedy(draft, ids + drafts))
        proposed += len(drafts)
        for token in drafts:
            true = greedy(target, ids)
            ids.append(true)
            if token != true:
                break
            accepted += 1
        else:
            ids.append(greedy(target, ids))
    return accepted, proposed


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small lose time by sharing their work, and much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_acceptance_is_that_of_decoding_step_by_step() -> None:
    """Two small random models that differ a little, so that some drafts are right."""
    target, draft = build(DRAFT, seed=0).eval(), build(DRAFT, seed=0).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight, changed in zip(target.parameters(), draft.parameters(), strict=True):
            weight *= 10 if weight.ndim == 2 else 1  # else each token repeats the last
            changed.copy_(weight + 0.01 * torch.randn(weight.shape, generator=noise))
    prompts = held_out_prompts(shipped_text(), 3, 12)
    rates = acceptance_by_k(target, draft, prompts, 10, 3)
    for k in (1, 3):
        totals = [_accepted_by_hand(target, draft, p, 10, k) for p in prompts]
        assert rates[k - 1] == sum(a for a, _ in totals) / sum(p for _, p in totals)
    assert 0 < rates[2] < 1
    assert acceptance_by_k(target, target, prompts, 4, 2) == [1.0, 1.0]

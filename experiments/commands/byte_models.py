"""Trains a small model and a smaller draft of it, byte level, in a minute or two on a CPU.

Random weights agree with no draft, and their beams descend like no trained model's. These two
have learnt one text together, so that speculation and beam search can be seen at work.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from harness.runs.half_written import write_whole
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.config import WorkloadConfig

_EXAMPLES = """\
examples:
  python -m experiments byte_models --out byte_models
  python -m experiments byte_models --out quick --seconds 20      # a first look
  python -m harness model=hub model.path=byte_models/target       # use it
"""

CONTEXT = 256
HELD_OUT_FRACTION = 0.1
DEFAULT_STEPS = 700
_TARGET_SHARE = 0.75  # of the seconds, where they are limited


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Llama and how it is trained.

    batch_size: stretches of `CONTEXT` bytes a step. rounds: optimiser steps for each step that
    is asked for; a small model has time for more.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    batch_size: int
    learning_rate: float
    rounds: int


TARGET = Recipe(192, 512, 4, 6, 2, batch_size=4, learning_rate=3e-3, rounds=1)
DRAFT = Recipe(64, 192, 2, 2, 1, batch_size=8, learning_rate=6e-3, rounds=1)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """losses in nats a byte; `held_out_loss` is on the text's last tenth, never trained on."""

    path: Path
    num_parameters: int
    steps: int
    seconds: float
    train_loss: float
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class TrainedPair:
    """Two checkpoints of one vocabulary, and the text they were trained on."""

    target: TrainedModel
    draft: TrainedModel
    seed: int
    text_sha256: str
    text_bytes: int


def shipped_text() -> str:
    """The account of a canal that comes with the package."""
    return (importlib.resources.files("experiments") / "data" / "text.txt").read_text("utf-8")


def byte_tokenizer() -> ByteTokenizer:
    """What the models read: the tokenizer that traces fall back to."""
    return ByteTokenizer(WorkloadConfig().first_regular_id)


def split_text(text: str) -> tuple[list[int], list[int]]:
    """Token ids to train on, and the last tenth, which no model has seen."""
    ids = byte_tokenizer().encode(text)
    held_out = round(len(ids) * HELD_OUT_FRACTION)
    if held_out <= CONTEXT:
        needed = math.ceil((CONTEXT + 1) / HELD_OUT_FRACTION)
        raise ValueError(f"a text of {len(ids)} bytes is too short: give at least {needed}")
    return ids[:-held_out], ids[-held_out:]


def held_out_prompts(text: str, num_prompts: int, prompt_len: int) -> list[list[int]]:
    """Prompts at equal distances from the part of `text` that no model has seen."""
    _, ids = split_text(text)
    last = len(ids) - prompt_len
    if num_prompts < 1 or not 1 <= prompt_len <= len(ids):
        raise ValueError(
            f"num_prompts={num_prompts}, prompt_len={prompt_len}: at least 1 of each, and prompts "
            f"of at most the {len(ids)} bytes held out"
        )
    starts = [last * i // max(num_prompts - 1, 1) for i in range(num_prompts)]
    return [ids[start : start + prompt_len] for start in starts]


def train(
    out: Path,
    text: str,
    *,
    steps: int = DEFAULT_STEPS,
    seconds: float | None = None,
    seed: int = 0,
) -> TrainedPair:
    """Train both models on `text` and save them as `out`/target and `out`/draft.

    The weights are a function of the text, `steps`, `seed`, the machine and its number of
    threads. `seconds` bounds the time of both together; where it cuts a training short, the
    weights depend on the machine's speed. The caller's random state is left as it was.
    """
    trained, held_out = (torch.tensor(ids) for ids in split_text(text))
    pair = {}
    for name, recipe in (("target", TARGET), ("draft", DRAFT)):
        share = (
            None
            if seconds is None
            else seconds * (_TARGET_SHARE if name == "target" else 1 - _TARGET_SHARE)
        )
        pair[name] = _train_one(
            out / name, recipe, trained, held_out, steps * recipe.rounds, share, seed
        )
    raw = text.encode()
    result = TrainedPair(
        **pair, seed=seed, text_sha256=hashlib.sha256(raw).hexdigest(), text_bytes=len(raw)
    )
    text = json.dumps(asdict(result), indent=2, default=str) + "\n"
    write_whole(out / "training.json", text)
    return result


def build(recipe: Recipe, seed: int) -> Any:
    """An untrained model; the caller's random state is left as it was."""
    config = transformers.LlamaConfig(
        vocab_size=byte_tokenizer().vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=4 * CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _train_one(
    out: Path,
    recipe: Recipe,
    ids: Tensor,
    held_out: Tensor,
    steps: int,
    seconds: float | None,
    seed: int,
) -> TrainedModel:
    start = time.perf_counter()
    model = build(recipe, seed).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batches = _batches(ids, recipe.batch_size, seed)
    done = 0
    recent: list[float] = []
    while done < steps and (seconds is None or time.perf_counter() - start < seconds):
        progress = done / steps
        if seconds is not None:
            progress = max(progress, (time.perf_counter() - start) / seconds)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(done, progress)
        batch = next(batches)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        recent = [*recent[-19:], loss.item()]
    model.eval()
    model.save_pretrained(out)
    return TrainedModel(
        path=out,
        num_parameters=model.num_parameters(),
        steps=done,
        seconds=time.perf_counter() - start,
        train_loss=sum(recent) / max(len(recent), 1),
        held_out_loss=_loss(model, held_out),
    )


def _batches(ids: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Stretches of `CONTEXT` tokens from anywhere in the text."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT)
    while True:
        starts = torch.randint(len(ids) - CONTEXT + 1, (batch_size, 1), generator=generator)
        yield ids[starts + offsets]


def _schedule(step: int, progress: float) -> float:
    """Share of the learning rate: 20 steps of warm-up, then half a cosine down to a tenth."""
    warm_up = min(1.0, (step + 1) / 20)
    return warm_up * (0.1 + 0.9 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def _loss(model: Any, ids: Tensor) -> float:
    rows = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    with torch.inference_mode():
        return float(model(input_ids=rows, labels=rows, use_cache=False).loss)


def acceptance_by_k(
    target: Any, draft: Any, prompts: Sequence[Sequence[int]], output_len: int, max_k: int
) -> list[float]:
    """Share of greedy drafts that are accepted for k = 1 to `max_k`.

    Plain forward passes without any cache: the figure that an engine's own must agree with.
    After each verification the draft starts anew behind the accepted tokens. A small model's
    greedy output repeats itself, which is easier to guess than text.
    """
    length = len(prompts[0])
    sequences = torch.tensor([list(p) for p in prompts])
    with torch.inference_mode():
        for _ in range(output_len):
            best = target(input_ids=sequences, use_cache=False).logits[:, -1].argmax(-1)
            sequences = torch.cat([sequences, best[:, None]], dim=1)
        runs = torch.stack(
            [_run_length(draft, sequences, end, max_k) for end in range(length, sequences.shape[1])]
        )
    return [_replay(runs, k) for k in range(1, max_k + 1)]


def _run_length(draft: Any, sequences: Tensor, end: int, max_k: int) -> Tensor:
    """How many tokens from `end` on the draft guesses right, in each sequence, up to `max_k`."""
    known = sequences[:, :end]
    truth = sequences[:, end : end + max_k]
    for _ in range(truth.shape[1]):
        best = draft(input_ids=known, use_cache=False).logits[:, -1].argmax(-1)
        known = torch.cat([known, best[:, None]], dim=1)
    return (known[:, end:] == truth).int().cumprod(dim=1).sum(dim=1)


def _replay(runs: Tensor, k: int) -> float:
    """Accepted over proposed drafts when each sequence is decoded k drafts at a time."""
    accepted = proposed = 0
    for column in runs.T.tolist():
        position = 0
        while position < len(column):
            drafts = min(k, len(column) - position)
            right = min(column[position], drafts)
            accepted += right
            proposed += drafts
            position += right + 1
    return accepted / proposed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, say what came out, and measure how well the draft guesses."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments byte_models", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--text", type=Path, help="a text of 3 KB or more; default: the shipped")
    parser.add_argument("--out", type=Path, default=Path("byte_models"), help="folder to write")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--seconds", type=float, help="stop training after about so long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    text = options.text.read_text("utf-8") if options.text else shipped_text()
    try:
        pair = train(
            options.out, text, steps=options.steps, seconds=options.seconds, seed=options.seed
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, model in (("target", pair.target), ("draft", pair.draft)):
        print(
            f"{name}: {model.num_parameters:,} parameters, {model.steps} steps in "
            f"{model.seconds:.0f} s, loss {model.train_loss:.2f}, held out "
            f"{model.held_out_loss:.2f} nats a byte -> {model.path}"
        )
    if options.seconds is not None:
        print("--seconds may stop it early: only --steps gives the same weights each time")
    target, draft = (
        transformers.AutoModelForCausalLM.from_pretrained(m.path) for m in (pair.target, pair.draft)
    )
    rates = acceptance_by_k(target, draft, held_out_prompts(text, 8, 64), 64, 8)
    print("greedy drafts accepted: " + ", ".join(f"k={k} {r:.2f}" for k, r in enumerate(rates, 1)))
    return 0

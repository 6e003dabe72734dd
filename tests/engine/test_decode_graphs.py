"""Captured decode steps give the tokens of the eager path, whatever is padded."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from model_driver import drive

from harness.engine.device.capture import Rehearsal, graph_sizes
from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.plan import PENDING_TOKEN, Chunk, StepPlan, TableUpdate
from harness.engine.request import SamplingParams

VOCAB, NUM_OUTPUT, PAGE_SIZE, NUM_PAGES = 256, 12, 4, 120
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_WINDOWED = {**_SHAPE, "sliding_window": 9}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_FAMILIES = {"llama": _SHAPE, "mistral": _WINDOWED, "gemma2": _WINDOWED, "gpt2": _GPT2}


@cache
def loaded(family: str) -> LoadedModel:
    shape = _FAMILIES[family]
    return load_model(ModelConfig(f"tiny_{family}", family, shape, initializer_range=0.3))


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))] for _ in range(count)]


class CountingCapture(Rehearsal):
    """Counts how often what was captured runs, by the order of capture."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, run):
        again, index = super().__call__(run), len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[index] += 1
            again()

        return replay


def executor(family: str = "llama", max_seqs: int = 6, **options: object) -> TorchExecutor:
    return TorchExecutor(
        loaded(family),
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        max_seqs=max_seqs,
        max_len=64,
        poison=True,
        **options,
    )


def tokens(built: TorchExecutor, count: int = 5, **options: object) -> list[list[int]]:
    return drive(
        built, prompts(count), NUM_OUTPUT, num_pages=NUM_PAGES, page_size=PAGE_SIZE, **options
    )


SAMPLED = [SamplingParams(0.0 if i % 3 == 0 else 0.9, 20, 0.9, seed=i) for i in range(5)]


@pytest.mark.parametrize("attention", ["paged", "contiguous"])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("family", _FAMILIES)
def test_tokens_are_those_of_the_eager_path(family: str, kernels: str, attention: str) -> None:
    capture = CountingCapture()
    options = {"kernels": kernels, "attention": attention}
    order = {"shuffle_seed": None} if attention == "contiguous" else {}
    expected = tokens(executor(family, **options), **order)
    graphed = executor(family, capture=capture, **options)
    for _ in range(2):  # the second time in rows that were freed
        assert tokens(graphed, **order) == expected
    assert len(set(expected[0])) > NUM_OUTPUT // 2
    assert sum(capture.replays) > 10


@pytest.mark.parametrize("fused", [False, True])
def test_with_the_interpreted_kernels(fused: bool) -> None:
    pytest.importorskip("triton")
    given = {"kernels": "triton", "fused": fused, "max_seqs": 2}
    capture = CountingCapture()
    graphed = executor(capture=capture, **given)
    assert tokens(graphed, 2) == tokens(executor(kernels="cpu", max_seqs=2), 2)
    assert sum(capture.replays) > 5


def test_random_draws_are_the_same() -> None:
    capture = CountingCapture()
    expected = tokens(executor(), sampling=SAMPLED)
    assert expected != tokens(executor())
    graphed = executor(capture=capture, samples=True)
    assert tokens(graphed, sampling=SAMPLED) == expected
    assert sum(capture.replays) > 10


def test_graphs_of_greedy_steps_leave_random_draws_alone() -> None:
    capture = CountingCapture()
    assert tokens(executor(capture=capture), sampling=SAMPLED) == tokens(
        executor(), sampling=SAMPLED
    )
    assert sum(capture.replays) < 5  # where only greedy ones are left at last


def test_more_rows_than_were_captured_fall_back() -> None:
    capture = CountingCapture()
    graphed = executor(max_seqs=6, capture=capture, most_captured=2)
    assert graphed.captured.sizes == (1, 2)
    assert tokens(graphed) == tokens(executor())
    assert sum(capture.replays) == 0
    assert tokens(graphed, 2) == tokens(executor(), 2)
    assert sum(capture.replays) > 5


def test_the_smallest_size_that_holds_the_highest_row_is_taken() -> None:
    capture = CountingCapture()
    graphed = executor(max_seqs=6, capture=capture)  # captured: 6, 4, 2, 1
    greedy = (SamplingParams(),)

    def step(seq_ids: list[int], start: int, freed: tuple[int, ...] = ()) -> list[int]:
        updates = [TableUpdate(i, 0, (i,)) for i in seq_ids] if start == 0 else []
        chunks = [Chunk(i, start, (7 + i,), greedy, start) for i in seq_ids]
        before = list(capture.replays)
        graphed.execute(StepPlan(tuple(chunks), tuple(updates), freed))
        return [now - then for now, then in zip(capture.replays, before, strict=True)]

    assert step([0, 1, 2], 0) == [0, 1, 0, 0]
    assert step([0, 1], 1) == [0, 0, 1, 0]
    assert step([2], 1) == [0, 1, 0, 0]
    assert step([3], 0, freed=(0, 1)) == [0, 0, 0, 1]  # the lowest row is given out first


def test_a_token_that_is_not_in_yet_is_taken_on_the_device() -> None:
    for capture in (None, Rehearsal()):
        known, unknown = executor(), executor(capture=capture)
        prompt, tables = [3, 1, 4, 1, 5], [TableUpdate(9, 0, (3, 1)), TableUpdate(4, 0, (0, 2))]
        greedy = (SamplingParams(),)
        first = StepPlan(
            (Chunk(9, 0, prompt, greedy), Chunk(4, 0, prompt[:2], greedy)), tuple(tables)
        )
        outcome = known.execute(first)
        pending = unknown.submit(first)
        for position in range(5, 8):
            chunks = [
                Chunk(seq_id, position - 3 * (seq_id == 4), (token,), greedy, position - 4)
                for seq_id, token in zip((9, 4), outcome.token_ids, strict=True)
            ]
            outcome = known.execute(StepPlan(tuple(chunks)))
            late = [chunk._replace(token_ids=(PENDING_TOKEN,)) for chunk in reversed(chunks)]
            following = unknown.submit(StepPlan(tuple(late)))
            unknown.result(pending)
            pending = following
        assert unknown.result(pending).token_ids == outcome.token_ids[::-1]


def test_sizes_cover_every_step_and_pad_little() -> None:
    for most in (1, 2, 3, 7, 8, 9, 250, 256, 257, 300, 1000):
        sizes = graph_sizes(most)
        assert sizes[-1] == most and list(sizes) == sorted(set(sizes))
        for rows in range(1, most + 1):
            padding = min(size for size in sizes if size >= rows) - rows
            assert padding < (8 if rows <= 256 else 64)
    assert len(graph_sizes(1024)) < 60


def test_nothing_moves_and_nothing_grows() -> None:
    """Addresses that a graph would have captured are those of its first step for ever."""
    seen: list[set[int]] = []
    graphed = executor(capture=Rehearsal())
    graphs = graphed._graphs
    assert graphs is not None
    logits_of = graphs._runner.logits

    def watched(ids, positions, rows, step):
        out = logits_of(ids, positions, rows, step)
        lean = graphs._runner.lean
        assert lean is not None and lean is not graphed.runner.lean
        parts = (positions, rows, step.seq_lens, step.query_start_loc, *step.slot_mappings)
        buffers = lean.buffers.addresses().values()
        seen.append({*(part.data_ptr() for part in (*parts, *step.block_tables)), *buffers})
        return out

    graphs._runner.logits = watched
    tokens(graphed)
    tokens(graphed, chunk_size=64)  # larger prompts than before
    assert len(seen) > 10 and all(each == seen[0] for each in seen)


def test_memory_of_a_run_is_that_of_its_captures() -> None:
    report = executor(capture=Rehearsal()).captured
    assert report.sizes == (1, 2, 4, 6) and report.seconds > 0 and report.num_bytes == 0
    assert torch.is_grad_enabled()

"""Proves on a small twin that a model attends, on pages and in chunks, as it does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor

from harness.engine.device.attention import ATTENTION_NAME
from harness.engine.device.batch import BatchBuilder
from harness.engine.device.kv_pool import KVPool
from harness.engine.device.lean.build import build
from harness.engine.device.model_runner import ModelRunner
from harness.engine.device.models import LoadedModel, shape_of
from harness.engine.device.twin import LIMIT, give_weights
from harness.engine.plan import Chunk, TableUpdate
from kernels import backend

_PAGE_SIZE = 4
_STEPS = ((0, 7, 14, 21, 28, 35, 36, 37, 38), (0, 0, 2, 13, 26, 27, 28, 29, 30))
"""Of two sequences the tokens computed before each step, and at last: chunks, then decodes."""
assert all(steps[-1] > 4 * LIMIT for steps in _STEPS)
_MOST_ERROR = 1e-3
"""Relative to the largest logit; both compute in fp32, in another order."""


class Difference(NamedTuple):
    """The first logits that differ: of which position, and by how much of the largest."""

    position: int
    error: float

    def __str__(self) -> str:
        return f"at position {self.position} by {100 * self.error:.3g} % of the largest"


class Verdict(NamedTuple):
    """Where the twin's logits differ from those of its own eager attention, if they do: through
    its own forward pass, and through the lean one if it has that."""

    own: Difference | None
    lean: Difference | None


@dataclass(frozen=True, slots=True)
class TwinOf:
    """A twin's config, told from others by its kind and values."""

    kind: type
    values: str
    hf_config: Any = field(compare=False)


@lru_cache
def check(twin: TwinOf) -> Verdict:
    """Logits of two sequences longer than every limit of the twin: prompts in chunks, then token by
    token, on poisoned pages; what a window has passed is poisoned again."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _one_thread():
        model = transformers.AutoModelForCausalLM.from_config(twin.hf_config, dtype=torch.float32)
        model = model.eval().requires_grad_(False)
        give_weights(model)
        shape = shape_of(model, twin.hf_config, torch.float32.itemsize)
        ids = [torch.arange(steps[-1]) * 37 % shape.vocab_size for steps in _STEPS]
        model.set_attn_implementation("eager")
        expected = [model(input_ids=each[None], use_cache=False).logits[0] for each in ids]
        _check_sensitive(model, ids[0], expected[0])
        model.set_attn_implementation(ATTENTION_NAME)
        own = LoadedModel(model=model, tokenizer=None, shape=shape, lean=None)
        first = _difference(_paged_logits(own, ids), expected)
        lean = build(model)
        if first is not None or lean is None:
            return Verdict(first, None)
        fused = LoadedModel(model=model, tokenizer=None, shape=shape, lean=lean)
        return Verdict(None, _difference(_paged_logits(fused, ids), expected))


@contextmanager
def _one_thread() -> Iterator[None]:
    """More only wait for one another over products of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_sensitive(model: Any, ids: Tensor, logits: Tensor) -> None:
    """Raise ValueError where another first token leaves the logits after it much as they are: then
    it does not show what is attended."""
    other = ids.clone()
    other[0] += 1
    change = (model(input_ids=other[None], use_cache=False).logits[0] - logits).abs()
    if not change[1:LIMIT].max() > 10 * _MOST_ERROR * logits.abs().max():
        raise ValueError("its logits hardly depend on the tokens before")


def _difference(actual: list[Tensor], expected: list[Tensor]) -> Difference | None:
    for ours, theirs in zip(actual, expected, strict=True):
        errors = (ours - theirs).abs().amax(dim=-1) / theirs.abs().max()
        for position, error in enumerate(errors.tolist()):
            if not error <= _MOST_ERROR:
                return Difference(position, error)
    return None


def _paged_logits(loaded: LoadedModel, ids: list[Tensor]) -> list[Tensor]:
    """Of each sequence the logits (tokens, vocabulary)."""
    groups = loaded.shape.layer_groups
    pages_each = [-(-len(each) // _PAGE_SIZE) for each in ids]
    pool = KVPool(
        loaded.shape,
        sum(pages_each) * len(groups),
        _PAGE_SIZE,
        dtype=torch.float32,
        poison=True,
        groups=groups,
    )
    runner = ModelRunner(loaded, pool, backend.load("cpu", "reference"))
    batches = BatchBuilder(len(ids), max(map(len, ids)), _PAGE_SIZE, len(groups))
    pages = torch.randperm(pool.num_pages, generator=torch.Generator().manual_seed(0)).tolist()
    for seq_id, count in enumerate(pages_each):
        for group in range(len(groups)):
            own, pages = pages[:count], pages[count:]
            batches.update([TableUpdate(seq_id, 0, own, group)])
    logits: list[list[Tensor]] = [[] for _ in ids]
    for spans in zip(*map(pairwise, _STEPS), strict=True):
        chunks = [
            Chunk(seq_id, start, ids[seq_id][start:end].tolist(), (), 0)
            for seq_id, (start, end) in enumerate(spans)
            if start < end
        ]
        batch = batches.build(tuple(chunks))
        batch = batch._replace(sample_rows=np.arange(len(batch.input_ids)))
        rows = runner.forward(batch).clone()
        for chunk, part in zip(
            chunks, torch.split(rows, [len(c.token_ids) for c in chunks]), strict=True
        ):
            logits[chunk.seq_id].append(part)
        _poison_passed(pool, batches, [end for _, end in spans])
    return [torch.cat(parts) for parts in logits]


def _poison_passed(pool: KVPool, batches: BatchBuilder, computed: list[int]) -> None:
    """What `release` gives back: whole pages that no query to come reads."""
    for number, group in enumerate(pool.groups):
        if group.window is None:
            continue
        for row, count in enumerate(computed):
            num_passed = max(0, count - group.window + 1) // _PAGE_SIZE
            for page in batches.table[number, row, :num_passed].tolist():
                slots = slice(page * _PAGE_SIZE, (page + 1) * _PAGE_SIZE)
                for layer in group.layers:
                    for cache in pool.caches[layer]:
                        cache[slots] = torch.nan

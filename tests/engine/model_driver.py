"""A minimal driver for executors: ragged batches of prefill chunks and decodes, no scheduler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.engine.executor import Executor
from harness.engine.plan import Chunk, StepPlan, TableUpdate
from harness.engine.request import SamplingParams


@dataclass
class _Stream:
    seq_id: int
    tokens: list[int]
    num_prompt: int
    page_ids: list[int]
    first_step: int
    computed: int = 0
    margins: list[float] = field(default_factory=list)


def drive(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    num_output: int,
    *,
    num_pages: int,
    page_size: int,
    chunk_size: int = 7,
    shuffle_seed: int | None = 0,
    sampling: Sequence[SamplingParams] | None = None,
    first_seq_id: int = 0,
    wrong_page_at: int | None = None,
) -> list[list[int]]:
    """Output tokens of each prompt. Sequence i starts at step i, so chunks and decodes mix.

    wrong_page_at: after that step, the first page of sequence 0 is silently replaced by a
    page of sequence 1 in the executor's block table.
    """
    pages = list(range(num_pages))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(pages)
    params = sampling or [SamplingParams()] * len(prompts)
    streams: list[_Stream] = []
    for i, prompt in enumerate(prompts):
        need = -(-(len(prompt) + num_output - 1) // page_size)
        own, pages = pages[:need], pages[need:]
        streams.append(_Stream(first_seq_id + i, list(prompt), len(prompt), own, i))
    outputs = _run(executor, streams, num_output, page_size, chunk_size, params, wrong_page_at)
    executor.execute(StepPlan((), freed_seq_ids=tuple(s.seq_id for s in streams)))
    return outputs


def _run(
    executor: Executor,
    streams: list[_Stream],
    num_output: int,
    page_size: int,
    chunk_size: int,
    params: Sequence[SamplingParams],
    wrong_page_at: int | None,
) -> list[list[int]]:
    step = 0
    while any(len(s.tokens) < s.num_prompt + num_output for s in streams):
        chunks, updates, chosen = [], [], []
        if wrong_page_at == step:
            updates.append(TableUpdate(streams[0].seq_id, 0, streams[1].page_ids[:1]))
        for stream, sampling in zip(streams, params, strict=True):
            done = len(stream.tokens) - stream.num_prompt
            if step < stream.first_step or done == num_output:
                continue
            end = min(stream.computed + chunk_size, len(stream.tokens))
            samples = end == len(stream.tokens)
            new = stream.tokens[stream.computed : end]
            chunks.append(
                Chunk(stream.seq_id, stream.computed, new, (sampling,) if samples else (), done)
            )
            had, need = -(-stream.computed // page_size), -(-end // page_size)
            if need > had:
                updates.append(TableUpdate(stream.seq_id, had, stream.page_ids[had:need]))
            stream.computed = end
            if samples:
                chosen.append(stream)
        outcome = executor.execute(StepPlan(tuple(chunks), tuple(updates)))
        assert len(outcome.token_ids) == len(outcome.margins) == len(chosen)
        for stream, token in zip(chosen, outcome.token_ids, strict=True):
            stream.tokens.append(token)
        step += 1
    return [s.tokens[s.num_prompt :] for s in streams]

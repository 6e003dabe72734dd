"""Requests that are made when they are asked for: a million of them, or prompts of a million
tokens, take no more memory than their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Literal, NamedTuple, overload

import numpy as np

from harness.engine.request import LazyTokens, Request, RequestOutline, SamplingParams
from harness.engine.scheduling.beam_search import BeamParams
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.limits import Limits
from harness.workloads.streams import Floats, Ints, Stream, rng

_MOST_REQUESTS = 2**31
"""Of a run: two seeds' requests have no random stream in common."""

_PROMPTS_KEPT = 4

Draw = Callable[[int], Sequence[int]]
"""Tokens of request i, at least as many as its length says."""


class RequestTable(NamedTuple):
    """What is known of each request without its tokens; names as in `Request`.

    prompt_lens, output_lens: before they are cut to the workload's bounds. after_request,
    session_id, shared_prefix_id: -1 for none; a column that is None has none.
    """

    prompt_lens: Ints
    output_lens: Ints
    arrivals_s: Floats
    after_request: Ints | None = None
    session_id: Ints | None = None
    shared_prefix_id: Ints | None = None
    shared_prefix_len: Ints | None = None


class LazyRequests(Sequence[Request]):
    """The requests of a table, each made anew each time, with tokens that are drawn when they are
    read: its own random ones where no `draw_prompt` or `draw_output` is given.

    Lengths are cut to the bounds here: scaled ones were rounded one by one, so that a prompt may
    overstep by a token or two.
    """

    def __init__(
        self,
        config: WorkloadConfig,
        context: Context,
        limits: Limits,
        table: RequestTable,
        draw_prompt: Draw | None = None,
        draw_output: Draw | None = None,
    ) -> None:
        self._config = config
        self._context = context
        self._table = table
        self._prompt_lens = np.minimum(table.prompt_lens, limits.max_len - 1)
        self._max_tokens = limits.each_max_tokens(self._prompt_lens)
        self._output_lens = limits.cut_outputs(self._prompt_lens, table.output_lens)
        # a reader that takes a prompt in slices draws it once
        self._draw_prompt = lru_cache(_PROMPTS_KEPT)(
            draw_prompt or partial(self._random, Stream.TOKENS, table.prompt_lens)
        )
        self._draw_output = draw_output or partial(self._random, Stream.OUTPUT, table.output_lens)

    def outlines(self) -> Iterator[RequestOutline]:
        """Of each request, without making it."""
        is_free = self._config.output == "free"
        for index, arrival_s in enumerate(self._table.arrivals_s):
            yield RequestOutline(
                float(arrival_s),
                int(self._prompt_lens[index]),
                int(self._max_tokens[index]),
                None if is_free else int(self._output_lens[index]),
                self._config.num_sequences,
                self._after(index),
            )

    def __len__(self) -> int:
        return len(self._prompt_lens)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return tuple(self._make(i) for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _make(self, index: int) -> Request:
        config, table = self._config, self._table
        prompt_len, output_len = int(self._prompt_lens[index]), int(self._output_lens[index])
        output = None
        if config.output == "forced_ids" and config.num_sequences == 1:
            output = LazyTokens(output_len, partial(self._draw_output, index))
        has_length = config.output != "free" and output is None
        return Request(
            request_id=index,
            arrival_s=float(table.arrivals_s[index]),
            prompt_ids=LazyTokens(prompt_len, partial(self._draw_prompt, index)),
            max_tokens=int(self._max_tokens[index]),
            num_samples=config.samples,
            beam=_beam(config),
            forced_ids=output,
            forced_len=output_len if has_length else None,
            eos_ids=self._context.eos_ids if config.output == "free" else frozenset(),
            sampling=self._sampling(index),
            shared_prefix_id=_at(table.shared_prefix_id, index),
            shared_prefix_len=min(max(0, _at(table.shared_prefix_len, index)), prompt_len),
            session_id=_at(table.session_id, index),
            after_request=self._after(index),
        )

    def _after(self, index: int) -> int | None:
        before = _at(self._table.after_request, index)
        return None if before < 0 else before

    def _random(self, stream: Stream, lengths: Ints, index: int) -> list[int]:
        ids: list[int] = self._context.tokens.draw(stream, index, int(lengths[index])).tolist()
        return ids

    def _sampling(self, index: int) -> SamplingParams:
        config, seed = self._config, self._context.seed
        if config.temperature == 0:  # injected drafts are drawn from it, by request
            return SamplingParams(seed=seed * _MOST_REQUESTS)
        own = int(rng(seed, Stream.SAMPLING, index).integers(2**31))
        return SamplingParams(config.temperature, config.top_k, config.top_p, own)


def _at(column: Ints | None, index: int) -> int:
    return -1 if column is None else int(column[index])


def _beam(config: WorkloadConfig) -> BeamParams | None:
    if config.beam_width == 1:
        return None
    stops: dict[str, bool | Literal["never"]] = {
        "heuristic": False, "first": True, "never": "never",
    }  # fmt: skip
    return BeamParams(config.beam_width, config.length_penalty, stops[config.early_stopping])

"""The generator of requests that begin with one of many system prompts, some far more popular."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from harness.engine.request import Workload
from harness.workloads.arrivals import arrival_times
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.describe import arrivals_in_words, bounds_in_words, branches_in_words
from harness.workloads.lazy_requests import LazyRequests, RequestTable
from harness.workloads.lengths import Pairs, describe, sample_fitting, sampler
from harness.workloads.limits import Limits, scale_length, scale_lengths
from harness.workloads.streams import Bools, Ints, Stream, TokenSource, rng

NAME = "system_prompts"

_BLOCK = 1024
"""Requests whose own tokens are drawn at one time: a stream for each would take longer than
serving a short request."""

_BLOCKS_KEPT = 8


class SystemPrompts(NamedTuple):
    """`workload.options` of this generator. number: system prompts, of `workload.shared_len` tokens
    each. zipf: the k-th most popular one is asked for in proportion to k to the minus this power;
    0 for all alike."""

    number: int = 1000
    zipf: float = 1.0


def generate(config: WorkloadConfig, context: Context) -> Workload:
    """Requests with the config's own lengths and arrivals, each after a system prompt that is drawn
    by its popularity. They are made as they are asked for; a larger `num_requests` starts with a
    smaller one's.

    Skewed popularity by Zipf's law is what serving traces show of shared prefixes; the exponent is
    an assumption to be varied.
    """
    many = _options(config.options)
    if config.num_requests is None or config.max_len is None or config.shared_len < 1:
        raise ValueError(
            f"workload.num_requests={config.num_requests}, workload.max_len={config.max_len}, "
            f"workload.shared_len={config.shared_len}: system_prompts needs all three, each at "
            "least 1"
        )
    count, scale = config.num_requests, config.scale
    fits = partial(_fits, config.max_len - config.shared_len)
    pairs = sample_fitting(sampler(config), rng(context.seed, Stream.LENGTHS), count, fits)
    arrivals = arrival_times(config, count, context.seed)
    limits = Limits.of(config, scale_length(config.max_len, scale), scale)
    head_len = scale_length(config.shared_len, scale)
    ranks = _ranks(many, context.seed, count)
    own_lens = scale_lengths(pairs.prompts, scale)
    output_lens = scale_lengths(pairs.outputs, scale)
    own_tokens = _Blocks(context.tokens, Stream.TOKENS, own_lens)
    heads = _heads(context.tokens, head_len)
    table = RequestTable(
        prompt_lens=own_lens + head_len,
        output_lens=output_lens,
        arrivals_s=arrivals,
        shared_prefix_id=ranks,
        shared_prefix_len=np.full(count, head_len),
    )
    requests = LazyRequests(
        config,
        context,
        limits,
        table,
        lambda index: (*heads(int(ranks[index])), *own_tokens.of(index)),
        _Blocks(context.tokens, Stream.OUTPUT, output_lens).of,
    )
    parts = (
        describe(config),
        f"{many.number:,} system prompts of {head_len} tokens, Zipf {many.zipf:g} (synthetic)",
        bounds_in_words(config, config.max_len, scale),
        branches_in_words(config),
        arrivals_in_words(config),
    )
    return Workload(
        config.name,
        requests,
        "; ".join(part for part in parts if part),
        config.concurrency if config.arrivals == "closed_loop" else None,
    )


class _Blocks:
    """The tokens of each request of one stream, drawn for many requests at a time."""

    def __init__(self, source: TokenSource, stream: Stream, lengths: Ints) -> None:
        self._source = source
        self._stream = stream
        self._lengths = lengths
        self._block = lru_cache(maxsize=_BLOCKS_KEPT)(self._draw)

    def of(self, index: int) -> list[int]:
        """Those of request `index`."""
        block, place = divmod(index, _BLOCK)
        return self._block(block)[place]

    def _draw(self, block: int) -> list[list[int]]:
        lengths = self._lengths[block * _BLOCK : (block + 1) * _BLOCK]
        ids = self._source.draw(self._stream, block, int(lengths.sum())).tolist()
        ends = np.cumsum(lengths).tolist()
        return [ids[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]


def _heads(source: TokenSource, length: int) -> Callable[[int], tuple[int, ...]]:
    """The system prompts, each drawn when it is asked for first, and kept."""
    kept: dict[int, tuple[int, ...]] = {}

    def head(rank: int) -> tuple[int, ...]:
        if rank not in kept:
            kept[rank] = tuple(source.draw(Stream.SHARED_PREFIX, rank, length).tolist())
        return kept[rank]

    return head


def _ranks(many: SystemPrompts, seed: int, count: int) -> Ints:
    """Which system prompt each request has: 0 is the most popular."""
    cumulated = np.cumsum(np.arange(1, many.number + 1, dtype=np.float64) ** -many.zipf)
    variates = rng(seed, Stream.POPULARITY).random(count)
    ranks: Ints = np.searchsorted(cumulated, variates * cumulated[-1], side="right")
    return ranks


def _fits(max_len: int, pairs: Pairs) -> Bools:
    mask: Bools = pairs.prompts + pairs.outputs < max_len
    return mask


def _options(options: Mapping[str, object]) -> SystemPrompts:
    """The options as numbers; ValueError for an unknown one or one out of range."""
    unknown = sorted(set(options) - set(SystemPrompts._fields))
    if unknown:
        raise ValueError(
            f"workload.options.{unknown[0]}: choose from {', '.join(SystemPrompts._fields)}"
        )

    given = SystemPrompts(**options)  # type: ignore[arg-type]
    if type(given.number) is not int or given.number < 1:
        raise ValueError(
            f"workload.options.number={given.number!r}: must be a whole number, at least 1"
        )
    if type(given.zipf) not in (int, float) or not 0 <= given.zipf < math.inf:
        raise ValueError(f"workload.options.zipf={given.zipf!r}: must be a number, at least 0")
    return given

"""The generator of long prompts that arrive while short requests decode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from harness.engine.request import Workload
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.lazy_requests import LazyRequests, RequestTable
from harness.workloads.lengths import sampler
from harness.workloads.limits import Limits, scale_length, scale_lengths
from harness.workloads.streams import Ints, Stream, rng

NAME = "long_arrivals"


class LongPrompts(NamedTuple):
    """`workload.options` of this generator. Lengths are in tokens before scaling.

    number: how many long prompts come. prompt_len, output_len: of each. first_s, interval_s:
    when the first comes, and the time from one to the next.
    """

    number: int = 8
    prompt_len: int = 1024
    output_len: int = 8
    first_s: float = 1.0
    interval_s: float = 1.0


def generate(config: WorkloadConfig, context: Context) -> Workload:
    """`num_requests` requests, of which the last `number` are long prompts.

    The others have the config's lengths, are there from the start and decode while the long
    prompts come, one every `interval_s` seconds: what Sarathi-Serve (Agrawal et al., OSDI 2024,
    section 3) calls generation stalls, in its plainest form.
    """
    long = _long_prompts(config.options)
    if config.num_requests is None or config.num_requests <= long.number:
        raise ValueError(
            f"workload.num_requests={config.num_requests}: must be above "
            f"workload.options.number={long.number}, or nothing decodes when long prompts come"
        )
    if config.max_len is None or long.prompt_len + long.output_len >= config.max_len:
        raise ValueError(
            f"workload.options.prompt_len={long.prompt_len} + output_len={long.output_len}: must "
            f"be below workload.max_len={config.max_len}: raise it or lower them"
        )
    scale = config.scale
    limits = Limits.of(config, scale_length(config.max_len, scale), scale)
    num_short = config.num_requests - long.number
    prompts, outputs = sampler(config)(rng(context.seed, Stream.LENGTHS), num_short)
    arrivals_s = long.first_s + np.arange(long.number) * long.interval_s
    table = RequestTable(
        prompt_lens=scale_lengths(_then(prompts, long.number, long.prompt_len), scale),
        output_lens=scale_lengths(_then(outputs, long.number, long.output_len), scale),
        arrivals_s=np.concatenate([np.zeros(num_short), arrivals_s]),
    )
    return Workload(
        name=config.name,
        requests=LazyRequests(config, context, limits, table),
        description=(
            f"{num_short} requests decode from the start; {long.number} prompts of "
            f"{scale_length(long.prompt_len, scale):,} tokens arrive from {long.first_s:g} s on, "
            f"{long.interval_s:g} s apart (synthetic)"
        ),
    )


def _then(lengths: Ints, count: int, length: int) -> Ints:
    return np.concatenate([lengths, np.full(count, length)])


def _long_prompts(options: Mapping[str, object]) -> LongPrompts:
    """The options as numbers; ValueError for an unknown one or one out of range."""
    unknown = sorted(set(options) - set(LongPrompts._fields))
    if unknown:
        raise ValueError(
            f"workload.options.{unknown[0]}: choose from {', '.join(LongPrompts._fields)}"
        )

    def number(key: str, lowest: float) -> float:
        value = options.get(key, LongPrompts._field_defaults[key])
        if isinstance(value, bool) or not isinstance(value, int | float) or value < lowest:
            raise ValueError(f"workload.options.{key}={value!r}: must be at least {lowest:g}")
        return value

    return LongPrompts(
        number=int(number("number", 1)),
        prompt_len=int(number("prompt_len", 1)),
        output_len=int(number("output_len", 1)),
        first_s=number("first_s", 0),
        interval_s=number("interval_s", 0),
    )

"""The generator of lengths x arrivals x sharing."""

from __future__ import annotations

from functools import partial

from harness.engine.request import Workload
from harness.workloads.arrivals import arrival_times
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context
from harness.workloads.describe import (
    arrivals_in_words,
    bounds_in_words,
    branches_in_words,
    sharing_in_words,
)
from harness.workloads.lengths import describe, sample_fitting, sampler
from harness.workloads.limits import Limits, scale_length
from harness.workloads.sharing import (
    SystemPrompt,
    chat_sessions,
    fitting_mask,
    single_requests,
)
from harness.workloads.streams import Stream, rng

NAME = "synthetic"


def generate(config: WorkloadConfig, context: Context) -> Workload:
    """Requests by the config; a larger `num_requests` starts with a smaller one's."""
    if config.num_requests is None or config.max_len is None:
        missing = "num_requests" if config.num_requests is None else "max_len"
        raise ValueError(f"workload.{missing}=null: only a trace has one of its own; give a number")
    count = config.num_requests
    pairs = sample_fitting(
        sampler(config),
        rng(context.seed, Stream.LENGTHS),
        count,
        partial(fitting_mask, config, config.max_len),
    )
    arrivals = arrival_times(config, count, context.seed)
    scale = config.scale
    limits = Limits.of(config, scale_length(config.max_len, scale), scale)
    make = chat_sessions if config.sharing == "chat" else single_requests
    requests = make(config, context, limits, pairs, arrivals, SystemPrompt(config, context))
    parts = (
        describe(config),
        sharing_in_words(config),
        bounds_in_words(config, config.max_len, config.scale),
        branches_in_words(config),
        arrivals_in_words(config),
    )
    return Workload(
        name=config.name,
        requests=requests,
        description="; ".join(part for part in parts if part),
        closed_loop=config.concurrency if config.arrivals == "closed_loop" else None,
    )

"""Fits a trace to the pool and the model, where the user did not say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.workloads.config import WorkloadConfig
from harness.workloads.trace_row import TraceRow
from harness.workloads.trace_scaling import scale_factor

_FITTED_PERCENT = 95
"""Share of the requests whose lengths decide the scale: the longest few would make it tiny."""


def fit_trace(
    config: WorkloadConfig, rows: Sequence[TraceRow], longest_len: int | None
) -> WorkloadConfig:
    """`config` with the `length_scale` and `max_len` that it leaves open.

    longest_len: tokens of the longest request that should be served; None leaves lengths as
    they are. The scale, at most 1, brings 95 % of the requests (all below `max_len`, where that
    is given) within `longest_len`, but not a block of prefix hashes below `page_multiple`
    tokens. `max_len` then leaves out what is longer still.
    """
    if longest_len is None or not rows:
        return config
    lengths = [row.prompt_len + row.output_len for row in rows]
    scale = config.length_scale
    if scale is None:
        bound = config.max_len or float(np.percentile(lengths, _FITTED_PERCENT))
        block_len = rows[0].block_len
        smallest = (config.block_len or config.page_multiple) / block_len if block_len else 0.0
        scale = min(1.0, max(smallest, longest_len / bound))
    scaled = replace(config, length_scale=scale)
    factor = scale_factor(scaled, rows)
    if config.max_len is None and max(lengths) * factor > longest_len:
        return replace(scaled, max_len=int(longest_len / factor))
    return scaled

"""When requests arrive: seconds from the start of the run, the first at 0."""

from __future__ import annotations

import numpy as np

from harness.workloads.config import WorkloadConfig
from harness.workloads.streams import Floats, Stream, rng


def arrival_times(config: WorkloadConfig, count: int, seed: int) -> Floats:
    """`count` arrival times by `config.arrivals`; more requests keep the first ones' times.

    Gaps have mean 1 / rate. `gamma` follows vLLM's benchmark: shape `burstiness`, scale
    1 / (rate * burstiness); `poisson` is its shape 1. `all_at_once` and `closed_loop` give
    zeros.
    """
    gaps = rng(seed, Stream.ARRIVALS)
    match config.arrivals:
        case "all_at_once" | "closed_loop":
            return np.zeros(count)
        case "constant":
            return np.arange(count) / config.rate
        case "poisson":
            return _from_gaps(gaps.exponential(1.0 / config.rate, size=max(0, count - 1)), count)
        case "gamma":
            scale = 1.0 / (config.rate * config.burstiness)
            return _from_gaps(gaps.gamma(config.burstiness, scale, size=max(0, count - 1)), count)
        case _:
            raise ValueError(
                f"workload.arrivals={config.arrivals}: no trace times here; use all_at_once, "
                "closed_loop, constant, poisson or gamma"
            )


def _from_gaps(gaps: Floats, count: int) -> Floats:
    times = np.zeros(count)
    np.cumsum(gaps, out=times[1:])
    return times

"""What a user types as `cluster.KEY=`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.facts import CodeFacts
from harness.workloads.config import WorkloadConfig

_MOST_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """replicas: engines that serve the workload side by side, each with a pool of its own; more
    than one only in simulation. load: what workload.rate, workload.num_requests and
    workload.concurrency are of, the whole fleet or each replica. router: round_robin,
    least_loaded, prefix_aware, or FILE.py:CLASS. facts: of that file's code, no setting.

    Of routers that take them, as prefix_aware does. cache_threshold: share of a prompt from which
    on a match counts. balance_abs_threshold (requests), balance_rel_threshold (a factor): a
    replica is passed over that has more requests than the least loaded one by more than both.
    index_tokens: tokens of prompts that are remembered of each replica; None for as many as its
    pool has. options: for a router of one's own: `+cluster.options.KEY=`.
    """

    replicas: int = 1
    load: Literal["total", "per_replica"] = "total"
    router: str = "round_robin"
    cache_threshold: float = 0.3
    balance_abs_threshold: int = 64
    balance_rel_threshold: float = 1.5
    index_tokens: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    facts: CodeFacts | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= _MOST_REPLICAS:
            raise ValueError(
                f"cluster.replicas={self.replicas}: must be at least 1 and at most {_MOST_REPLICAS}"
            )
        if not 0 <= self.cache_threshold <= 1:
            raise ValueError(
                f"cluster.cache_threshold={self.cache_threshold}: must be in [0, 1], a share of "
                "the prompt"
            )
        if self.balance_abs_threshold < 0:
            raise ValueError(
                f"cluster.balance_abs_threshold={self.balance_abs_threshold}: must be 0 or more"
            )
        if not 1 <= self.balance_rel_threshold < math.inf:
            raise ValueError(
                f"cluster.balance_rel_threshold={self.balance_rel_threshold}: must be at least 1"
            )
        if self.index_tokens is not None and self.index_tokens < 1:
            raise ValueError(f"cluster.index_tokens={self.index_tokens}: must be at least 1")

    def workload(self, given: WorkloadConfig) -> WorkloadConfig:
        """What the whole fleet is sent. ValueError where it cannot be multiplied."""
        if self.load == "total" or self.replicas == 1:
            return given
        if given.arrivals == "trace" or given.num_requests is None:
            raise ValueError(
                "cluster.load=per_replica multiplies a rate and a number of requests, and "
                f"workload.arrivals={given.arrivals} workload.num_requests={given.num_requests} "
                "are a trace's own: use cluster.load=total, and workload.speed_up for its rate"
            )
        return replace(
            given,
            rate=self.replicas * given.rate,
            num_requests=self.replicas * given.num_requests,
            concurrency=self.replicas * given.concurrency,
        )


ROUTER_KEYS = (
    "cache_threshold",
    "balance_abs_threshold",
    "balance_rel_threshold",
    "index_tokens",
)
"""Keys that a router has where its constructor has a parameter of that name."""

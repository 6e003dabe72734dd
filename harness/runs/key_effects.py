"""Keys that only some other choice gives an effect: one that a user typed for nothing is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from harness.cluster.config import ROUTER_KEYS, ClusterConfig
from harness.cluster.discovery import available, options
from harness.config import ConfigError, RunConfig
from harness.own_code import is_file
from harness.runs.pool_size import is_what_memory_leaves
from harness.workloads.config import WorkloadConfig


class Need(NamedTuple):
    """holds: whether a run reads the key. way_out: what a user adds so that one does."""

    holds: Callable[[RunConfig], bool]
    way_out: str


_BEAMS = Need(lambda c: c.workload.beam_width > 1, "workload.beam_width=4, or more than 1")
_PREDICTED = Need(lambda c: c.allocator.expected == "predicted", "allocator.expected=predicted")
_DRAFTS = Need(
    lambda c: c.engine.speculation.method != "none",
    "engine.speculation.method=ngram, draft_model or injected",
)
_LOOKUP = Need(lambda c: c.engine.speculation.method == "ngram", "engine.speculation.method=ngram")
_CHANCE = Need(
    lambda c: (
        c.engine.speculation.method == "injected"
        or (c.engine.speculation.method == "draft_model" and c.executor.kind == "simulated")
    ),
    "engine.speculation.method=injected, or a draft model's executor=simulated",
)

_ROOFLINE = Need(lambda c: c.executor.cost == "roofline", "executor.cost=roofline")

_CONSTANT = Need(
    lambda c: c.executor.kind == "simulated" and c.executor.cost == "constant",
    "executor=simulated executor.cost=constant",
)

_SWAP = Need(lambda c: c.engine.preemption == "swap", "engine.preemption=swap")

_TORCH = Need(lambda c: c.executor.kind == "torch", "executor=torch")

_GPU = Need(
    lambda c: (
        c.executor.kind == "torch" and c.device.kind != "cpu" and c.engine.tensor_parallel == 1
    ),
    "executor=torch device=cuda engine.tensor_parallel=1",
)

_PARALLEL = Need(
    lambda c: _ROOFLINE.holds(c) and c.engine.tensor_parallel > 1,
    f"{_ROOFLINE.way_out} engine.tensor_parallel=2, or more",
)

_SIZED_BY_MEMORY = Need(
    lambda c: c.executor.cost == "roofline" or is_what_memory_leaves(c, 1),
    "kv.memory_fraction=0.9 in place of kv.pool_tokens or kv.pool_demand",
)

_FLEET = Need(lambda c: c.cluster.replicas > 1, "cluster.replicas=2")


def _requests(holds: Callable[[WorkloadConfig], bool], way_out: str) -> Need:
    """A key of some workloads; what a generator beside these two reads is its own affair."""
    return Need(
        lambda c: c.workload.generator not in ("synthetic", "trace") or holds(c.workload), way_out
    )


_RATE = _requests(
    lambda w: w.arrivals in ("constant", "poisson", "gamma"), "workload.arrivals=poisson"
)
_TRACE = _requests(lambda w: w.generator == "trace", "workload=trace")
_SHARED = _requests(
    lambda w: w.generator == "synthetic" and w.sharing != "none", "workload.sharing=system_prompt"
)
_SYNTHETIC = _requests(lambda w: w.generator == "synthetic", "workload.generator=synthetic")
_TIMED_TRACE = _requests(
    lambda w: w.generator == "trace" and w.arrivals == "trace",
    "workload=trace workload.arrivals=trace",
)
_FITTED = _requests(
    lambda w: w.generator == "trace" and (w.length_scale is None or w.max_len is None),
    "workload=trace without workload.length_scale or workload.max_len",
)
_THOUGHT = _requests(
    lambda w: w.generator == "trace" or w.sharing == "chat", "workload.sharing=chat"
)
_CHAT = _requests(
    lambda w: w.generator == "synthetic" and w.sharing == "chat", "workload.sharing=chat"
)
_DRAWN = Need(lambda c: c.workload.temperature > 0, "workload.temperature=1")


def _lengths(name: str) -> Need:
    """A key of one distribution of lengths."""
    return _requests(
        lambda w: w.generator == "synthetic" and w.lengths == name, f"workload.lengths={name}"
    )


def _routed(option: str) -> Need:
    """An option that not every router has."""
    return Need(
        lambda c: _FLEET.holds(c) and _takes(c.cluster, option),
        f"{_FLEET.way_out} cluster.router=prefix_aware (or another router that takes it)",
    )


def _takes(cluster: ClusterConfig, option: str) -> bool:
    """One of whose code nothing is known takes any."""
    if is_file(cluster.router):
        return cluster.facts is None or option in cluster.facts.defaults
    return cluster.router not in available() or option in options(available()[cluster.router])


_BOTH = ("prompt", "output")

NEEDS: Mapping[str, Need] = {
    "executor.step_ms": _CONSTANT,
    "executor.gpu": _ROOFLINE,
    "executor.gemm_efficiency": _ROOFLINE,
    "executor.attention_efficiency": _ROOFLINE,
    "executor.bandwidth_efficiency": _ROOFLINE,
    "executor.host_us": _ROOFLINE,
    "executor.host_us_per_sequence": _ROOFLINE,
    "executor.transfer_us": Need(
        lambda c: _ROOFLINE.holds(c) and _SWAP.holds(c),
        f"{_ROOFLINE.way_out} and {_SWAP.way_out}",
    ),
    "executor.allreduce_us": _PARALLEL,
    "cluster.router": _FLEET,
    "cluster.load": _FLEET,
    **{f"cluster.{option}": _routed(option) for option in ROUTER_KEYS},
    "engine.swap_tokens": _SWAP,
    "engine.cuda_graph": _GPU,
    "engine.overlap": _GPU,
    "engine.compile": _TORCH,
    "engine.fused": _TORCH,
    "attention.backend": _TORCH,
    "device.threads": _TORCH,
    "device.imagined_memory_gib": _SIZED_BY_MEMORY,
    "measure.memory_map_period_s": Need(lambda c: c.measure.memory_map, "measure.memory_map=true"),
    "engine.speculation.num_tokens": _DRAFTS,
    "engine.speculation.ngram_min": _LOOKUP,
    "engine.speculation.ngram_max": _LOOKUP,
    "engine.speculation.acceptance": _CHANCE,
    "allocator.expected_bias": _PREDICTED,
    "allocator.expected_spread": _PREDICTED,
    "workload.rate": _RATE,
    "workload.burstiness": _requests(lambda w: w.arrivals == "gamma", "workload.arrivals=gamma"),
    "workload.concurrency": _requests(
        lambda w: w.arrivals == "closed_loop", "workload.arrivals=closed_loop"
    ),
    **{f"workload.{key}": _TRACE for key in ("path", "format", "start_s", "block_len")},
    "workload.speed_up": _TIMED_TRACE,
    "workload.fit_len": _FITTED,
    "workload.lengths": _SYNTHETIC,
    "workload.think_s": _THOUGHT,
    **{f"workload.{key}": _lengths("fixed") for key in ("prompt_len", "output_len")},
    **{f"workload.{of}_{end}": _lengths("uniform") for of in _BOTH for end in ("min", "max")},
    **{f"workload.{of}_{key}": _lengths("lognormal") for of in _BOTH for key in ("mean", "cv")},
    **{f"workload.{key}": _SHARED for key in ("shared_len", "shared_fraction")},
    "workload.turns": _CHAT,
    **{f"workload.{key}": _DRAWN for key in ("top_k", "top_p")},
    "workload.length_penalty": _BEAMS,
    "workload.early_stopping": _BEAMS,
}


def check_effects(typed: Collection[str], configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError for a key among `typed` that changes none of a command's `configs`.

    One run that reads it will do: a sweep may compare it with runs that have no use for it.
    """
    for key, need in NEEDS.items():
        if key not in typed:
            continue
        value_of = attrgetter(key)
        default = value_of(RunConfig())
        given = {value_of(config) for config in configs} - {default}
        if given and not any(need.holds(config) for config in configs):
            values = ",".join(sorted(map(_as_typed, given)))
            raise ConfigError(
                f"{key}={values} has no effect here: add {need.way_out}, or leave it out"
            )


def _as_typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)

"""The configuration of a run, as typed dataclasses. Nothing below this file sees a DictConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.cluster.config import ClusterConfig
from harness.engine.device.model_shape import ModelConfig
from harness.engine.scheduling.length_estimate import Estimate
from harness.engine.scheduling.scheduler import BatchOrder, Preemption, Schedule
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.engine.scheduling.victims import VictimPolicy
from harness.facts import CodeFacts
from harness.workloads.config import WorkloadConfig


class ConfigError(ValueError):
    """A key or value that a user typed is wrong. The message is one line and names the way out."""


def _check_at_least_one(key: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{key}={value}: must be at least 1")


def _check_positive(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{key}={value}: must be above 0")


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """name: a discovered strategy, or FILE.py:CLASS. expected: what it is told of lengths.
    expected_bias, expected_spread: of `predicted`. options: the strategy's own. facts: of its
    code, no setting; None where its name tells them.
    """

    name: str = "paged"
    expected: Estimate = "none"
    expected_bias: float = 1.0
    expected_spread: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: CodeFacts | None = None

    def __post_init__(self) -> None:
        _check_positive("allocator.expected_bias", self.expected_bias)
        if self.expected_spread < 0:
            raise ConfigError(
                f"allocator.expected_spread={self.expected_spread}: must be 0 or more"
            )


ALLOCATOR_KEYS = tuple(
    key for key in AllocatorConfig.__dataclass_fields__ if key not in ("options", "facts")
)
"""Keys of every allocator; what else stands under `allocator` are a strategy's own options."""


@dataclass(frozen=True, slots=True)
class KVConfig:
    """The pool, by one of: `pool_tokens`; `pool_demand` times the mean length of a finished
    request; `memory_fraction` of the device less weights and activations, which a GPU measures
    (docs/gpu.md).
    """

    page_size: int = 16
    pool_tokens: int | None = None
    pool_demand: float | None = None
    memory_fraction: float | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        _check_at_least_one("kv.page_size", self.page_size)
        _check_at_least_one("kv.pool_tokens", self.pool_tokens)
        _check_positive("kv.pool_demand", self.pool_demand)
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"kv.memory_fraction={self.memory_fraction}: must be in (0, 1]")
        sizes = [
            f"kv.{key}={value}"
            for key in ("pool_tokens", "pool_demand", "memory_fraction")
            if (value := getattr(self, key)) is not None
        ]
        if len(sizes) > 1:
            raise ConfigError(
                f"{' beside '.join(sizes)}: each sizes the pool, keep one; where an experiment "
                "gives the other, set that to null"
            )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """See `SchedulerConfig`. swap_tokens: slots on the host for preemption=swap; None for as
    many as the pool has, 0 recomputes. fused: lean forward pass where the model's modules allow
    it. tensor_parallel: ranks that the model is split over, a GPU each or a process each on a CPU;
    in simulation GPUs (docs/tensor_parallel.md).

    cuda_graph: on a GPU, decode steps are captured beforehand and replayed. overlap: on a GPU, the
    next step is decided while the device works on this one, wherever its outcome cannot matter
    (docs/engine.md). compile: the model's own forward goes through torch.compile, in place of the
    lean one. The first two have no effect on a CPU or a split model, none of the three in
    simulation.
    """

    schedule: Schedule = "mixed_chunked"
    token_budget: int = 512
    max_num_seqs: int = 256
    watermark: float = 0.01
    preemption: Preemption = "recompute"
    swap_tokens: int | None = None
    victim: VictimPolicy = "latest"
    batch_size: int | None = None
    batch_order: BatchOrder = "arrival"
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    fused: bool = True
    tensor_parallel: int = 1
    cuda_graph: bool = True
    overlap: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        _check_at_least_one("engine.token_budget", self.token_budget)
        _check_at_least_one("engine.tensor_parallel", self.tensor_parallel)
        _check_at_least_one("engine.max_num_seqs", self.max_num_seqs)
        _check_at_least_one("engine.batch_size", self.batch_size)
        if self.swap_tokens is not None and self.swap_tokens < 0:
            raise ConfigError(f"engine.swap_tokens={self.swap_tokens}: must be 0 or more")
        if self.schedule != "static" and (self.batch_size or self.batch_order != "arrival"):
            raise ConfigError(
                f"engine.batch_size and engine.batch_order are of static batches, not of "
                f"engine.schedule={self.schedule}: add engine.schedule=static"
            )
        if not 0 <= self.watermark < 1:
            raise ConfigError(f"engine.watermark={self.watermark}: must be in [0, 1)")


_LARGEST_MEMORY_GIB = 2.0**20


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """kind: auto takes a CUDA GPU where there is one. threads: torch's; None leaves its own.
    imagined_memory_gib: on a CPU, the device that kv.memory_fraction is a fraction of. Both are of
    each of engine.tensor_parallel ranks.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    imagined_memory_gib: float | None = None

    def __post_init__(self) -> None:
        _check_at_least_one("device.threads", self.threads)
        _check_positive("device.imagined_memory_gib", self.imagined_memory_gib)
        if (self.imagined_memory_gib or 0) > _LARGEST_MEMORY_GIB:
            raise ConfigError(
                f"device.imagined_memory_gib={self.imagined_memory_gib:g}: must be at most "
                f"{_LARGEST_MEMORY_GIB:g}"
            )


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """kind: torch runs the model; simulated only reckons with time.

    cost, of a simulated step: constant (step_ms); roofline, from the published figures of `gpu`
    and the model's shape; calibrated, from steps of real runs (`calibration`: the file that
    `python -m experiments calibrate` wrote).

    What follows is of cost=roofline. gemm_efficiency, attention_efficiency, bandwidth_efficiency:
    shares of published peaks. host_us, host_us_per_sequence: what the host adds to a forward
    pass, which nobody published; 0 gives the bound that the hardware sets. transfer_us: a copy to
    the host or back, beside its bytes; allreduce_us: an all-reduce, beside its bytes; both as
    others measured them once, on machines of their own (docs/simulator.md).
    """

    kind: Literal["torch", "simulated"] = "torch"
    cost: Literal["constant", "roofline", "calibrated"] = "constant"
    step_ms: float = 20.0
    calibration: str | None = None
    gpu: Literal["a100_40gb", "a100_80gb", "h100", "h200", "l4"] = "a100_40gb"
    gemm_efficiency: float = 0.85
    attention_efficiency: float = 0.6
    bandwidth_efficiency: float = 1.0
    host_us: float = 0.0
    host_us_per_sequence: float = 0.0
    transfer_us: float = 2.3
    allreduce_us: float = 10.0

    def __post_init__(self) -> None:
        _check_positive("executor.step_ms", self.step_ms)
        for key in ("host_us", "host_us_per_sequence", "transfer_us", "allreduce_us"):
            if getattr(self, key) < 0:
                raise ConfigError(f"executor.{key}={getattr(self, key):g} must be at least 0")
        for key in ("gemm_efficiency", "attention_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"executor.{key}={getattr(self, key):g}: must be in (0, 1]")
        if self.cost != "constant" and self.kind != "simulated":
            raise ConfigError(f"executor.cost={self.cost} needs executor=simulated")
        if (self.cost == "calibrated") != (self.calibration is not None):
            raise ConfigError(
                f"executor.calibration={self.calibration} with executor.cost={self.cost}: a "
                "calibrated cost needs both, executor.cost=calibrated executor.calibration=FILE "
                "(`python -m experiments calibrate` writes one)"
            )


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """kind: paged (one kernel for all), contiguous (the same without a table; contiguous
    strategies only), auto. backend: kernels to use, auto by device.
    """

    kind: Literal["paged", "contiguous", "auto"] = "paged"
    backend: str = "auto"


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """memory_map: keep the pool's history page by page, sampled every memory_map_period_s.
    slo_*: bounds that a request must keep to count for goodput; None for no bound.
    slo_normalised_ms is also what the mean may be at a rate that is called sustained, where a
    search names no bound of its own. step_work: each step's record says what it had to do, for
    a calibration. outcome_log: keep what the run was told and what it decided, for
    `python -m experiments replay`.
    """

    memory_map: bool = False
    step_work: bool = False
    outcome_log: bool = False
    memory_map_period_s: float = 0.0
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    slo_normalised_ms: float | None = None

    def __post_init__(self) -> None:
        _check_positive("measure.slo_ttft_ms", self.slo_ttft_ms)
        _check_positive("measure.slo_tpot_ms", self.slo_tpot_ms)
        _check_positive("measure.slo_normalised_ms", self.slo_normalised_ms)
        if self.memory_map_period_s < 0:
            raise ConfigError(
                f"measure.memory_map_period_s={self.memory_map_period_s}: must be 0 or more"
            )


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """kind: none, jsonl or wandb. What follows is of W&B (docs/wandb.md).

    mode: auto is what WANDB_MODE says, else online where one is logged in. timeout_s: how long W&B
    may take after a sweep before it is ended. step_files: the results' artifact has every step and
    request of every run, too.
    """

    kind: Literal["none", "jsonl", "wandb"] = "jsonl"
    project: str = "kvarena"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    timeout_s: float = 300.0
    step_files: bool = False

    def __post_init__(self) -> None:
        _check_positive("tracking.timeout_s", self.timeout_s)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run: `repetitions` of one configuration at seeds seed, seed + 1, ..."""

    seed: int = 0
    repetitions: int = 1
    allocator: AllocatorConfig = field(default_factory=AllocatorConfig)
    kv: KVConfig = field(default_factory=KVConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        _check_at_least_one("repetitions", self.repetitions)
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must be 0 or more")
        if self.executor.kind == "simulated" and self.workload.output == "free":
            raise ConfigError(
                "executor=simulated cannot know where a free output ends: use "
                "workload.output=forced_ids or forced_length, or executor=torch"
            )
        self._check_tensor_parallel()
        self._check_speculation()
        self._check_cluster()
        branches, limit = self.workload.num_sequences, self.engine.max_num_seqs
        if branches > limit:
            key = "beam_width" if self.workload.beam_width > 1 else "samples"
            raise ConfigError(
                f"workload.{key}={branches} needs as many sequences at once, and "
                f"engine.max_num_seqs={limit} are all that run: lower it, or raise that"
            )
        if self.attention.kind == "contiguous" and self.allocator.name != "contiguous":
            raise ConfigError(
                f"attention=contiguous reads sequences without a table, which allocator="
                f"{self.allocator.name} cannot promise: use attention=paged or "
                "allocator=contiguous"
            )

    def _check_tensor_parallel(self) -> None:
        count = self.engine.tensor_parallel
        if count > 1 and self.executor.kind == "simulated" and self.executor.cost != "roofline":
            raise ConfigError(
                f"engine.tensor_parallel={count} with executor.cost={self.executor.cost}: only the "
                "roofline knows what a split model costs, so add executor.cost=roofline, use "
                "executor=torch, or leave it out"
            )
        if count > 1 and self.engine.compile:
            raise ConfigError(
                f"engine.compile=true with engine.tensor_parallel={count}: torch.compile takes a "
                "whole model, set one of them off"
            )

    def _check_cluster(self) -> None:
        count = self.cluster.replicas
        self.cluster.workload(self.workload)
        if count == 1:
            return
        if self.executor.kind != "simulated":
            raise ConfigError(
                f"cluster.replicas={count} is simulated only: add executor=simulated, or leave it "
                "out"
            )
        for key in ("memory_map", "step_work", "outcome_log"):
            if getattr(self.measure, key):
                raise ConfigError(
                    f"measure.{key}=true is of one engine, and cluster.replicas={count}: set one "
                    "of them off"
                )

    def _check_speculation(self) -> None:
        method = self.engine.speculation.method
        if method == "none":
            return
        forced = self.workload.output == "forced_ids" and self.workload.num_sequences == 1
        if not forced and (method == "injected" or self.executor.kind == "simulated"):
            raise ConfigError(
                f"engine.speculation.method={method} with executor={self.executor.kind} must know "
                "each next token: use workload.output=forced_ids and one sequence a request"
            )
        if self.workload.beam_width > 1:
            raise ConfigError(
                f"engine.speculation.method={method} with workload.beam_width="
                f"{self.workload.beam_width}: beams are not drafted, set one of them off"
            )


TIMEOUT_S = 3600.0
"""Many times what any preset's run takes."""


@dataclass(frozen=True, slots=True)
class SteeringConfig:
    """How an experiment is run, none of which changes a number. timeout_s: that a run may take,
    with all of its repetitions; what takes longer is ended, as an allocator that loops is."""

    preset: str = "quick"
    dry_run: bool = False
    results_dir: str = "results"
    timeout_s: float = TIMEOUT_S
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.results_dir:
            raise ConfigError("results_dir='': names no folder; give one, `.` for this one")
        _check_positive("timeout_s", self.timeout_s)


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """An experiment: what it asks, which of `experiments.figures` answer, its parts by preset.

    include: experiments whose parts and figures it has before its own.
    """

    name: str = "single"
    question: str = ""
    include: Sequence[str] = ()
    figures: Sequence[str] = ()
    presets: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=lambda: {"quick": [{}], "full": [{}]}
    )


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """A search for the highest value of `key` that is sustained (docs/metrics.md), expected
    between `low` and `high`, to within a relative `tolerance`.

    normalised_latency_ms: the bound; None for measure.slo_normalised_ms of the runs.
    """

    key: str = "workload.rate"
    low: float = 0.0
    high: float = 0.0
    tolerance: float = 0.05
    normalised_latency_ms: float | None = None

    def __post_init__(self) -> None:
        _check_positive("search.low", self.low)
        _check_positive("search.normalised_latency_ms", self.normalised_latency_ms)
        if not self.low < self.high < math.inf:
            raise ConfigError(f"search.high={self.high}: must be above search.low={self.low}")
        if not _FINEST_TOLERANCE <= self.tolerance < math.inf:
            raise ConfigError(
                f"search.tolerance={self.tolerance}: must be at least {_FINEST_TOLERANCE}"
            )


_FINEST_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True)
class PartConfig:
    """A full grid: every combination of the lists in `axes`, over the settings in `set`.

    unless: keys; the part is left out when the user sets one of them. search: made in each
    combination, unless the user gives its key a value.
    """

    name: str = "runs"
    set: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unless: Sequence[str] = ()
    search: SearchConfig | None = None

    def __post_init__(self) -> None:
        if self.search is not None and self.search.key in (*self.set, *self.axes):
            raise ConfigError(f"part {self.name!r}: {self.search.key} is searched: give no value")
        for key, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"part {self.name!r}: axis {key}={values!r} must be a list")

"""The device that a model runs on, kept warm between the runs of one worker."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import psutil
import torch

from harness.config import ConfigError, DeviceConfig, RunConfig
from harness.engine.device.capture import Capture, CudaCapture, Rehearsal
from harness.engine.device.compiled import CompiledModel
from harness.engine.device.model_shape import LayerGroup, ModelConfig, ModelShape
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.parallel.followers import Followers
from harness.engine.device.parallel.launched import Launch, Launched
from harness.engine.device.parallel.spawned import Spawned
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.executor import Executor
from harness.runs.device_memory import CudaMemory, DeviceMemory
from harness.runs.memory_profile import largest_step, most_samples, most_tokens, pages_of
from harness.runs.planned_environment import CPU_NAME
from harness.runs.pool_size import BesidePool, draft_model, estimated_beside_pool, host_pages
from harness.runs.surroundings import MOST_BYTES_LEFT
from harness.runs.warm_up import WARM_UP_LEN, warm_up_forward, warm_up_moves


def resolve_device(config: DeviceConfig) -> Literal["cpu", "cuda"]:
    """`cpu` or `cuda`. Asked for a GPU that is not there, it says so and falls back to nothing."""
    has_cuda = torch.cuda.is_available()
    if config.kind == "cuda" and not has_cuda:
        raise ConfigError(
            "device=cuda: torch sees no CUDA GPU here (torch.cuda.is_available() is False): "
            "use device=cpu or device=auto, or install a CUDA build of torch and its driver"
        )
    if config.kind == "auto":
        return "cuda" if has_cuda else "cpu"
    return config.kind


_TORCH_THREADS = torch.get_num_threads()
"""As this process found them: a device sets them, and the next one is to begin anew."""


def threads_of_rank(config: DeviceConfig, tensor_parallel: int) -> int:
    """device.threads, else torch's own; of ranks that this process starts each has a part of
    these. torchrun says of each rank's own."""
    if config.threads is not None:
        return config.threads
    num_sharing = tensor_parallel if Launch.of() is None else 1
    return max(1, _TORCH_THREADS // num_sharing)


def check_gpus(kind: str, tensor_parallel: int) -> None:
    """Raise ConfigError where ranks would have to share a GPU."""
    launch = Launch.of()
    needed = tensor_parallel if launch is None else launch.local_size
    found = torch.cuda.device_count() if kind == "cuda" else needed
    if found < needed:
        raise ConfigError(
            f"engine.tensor_parallel={tensor_parallel} needs {needed} GPUs on this machine, torch "
            f"sees {found}: lower it, or use device=cpu"
        )


def kv_dtype_name(config: RunConfig, shape: ModelShape) -> str:
    """kv.dtype, or the model's own."""
    if config.kv.dtype != "auto":
        return config.kv.dtype
    if config.model.dtype != "auto":
        return config.model.dtype
    return {4: "float32", 2: "bfloat16"}[shape.dtype_bytes]


def describe_device(config: DeviceConfig) -> str:
    """The device's name, as it stands beside every number."""
    kind = resolve_device(config)
    if kind == "cuda":
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return CPU_NAME.format(threads=config.threads or torch.get_num_threads())


class TorchDevice:
    """A loaded model on its device; every run gets a pool and an executor of its own.

    tensor_parallel: ranks that the model is split over; this process is the first of them, and the
        others are started here. memory: the device's counters; a GPU's own by default, and none on
        a CPU, where nothing is measured and the pool is not sized by them. rehearses_graphs: on a
        CPU, what CUDA graphs replay is done step by step (for tests).
    """

    def __init__(
        self,
        model: ModelConfig,
        device: DeviceConfig,
        memory: DeviceMemory | None = None,
        *,
        rehearses_graphs: bool = False,
        tensor_parallel: int = 1,
    ) -> None:
        self.kind = resolve_device(device)
        self.tensor_parallel = tensor_parallel
        self.memory = CudaMemory() if memory is None and self.kind == "cuda" else memory
        torch.set_num_threads(threads_of_rank(device, tensor_parallel))
        torch.backends.cuda.matmul.allow_tf32 = False
        self._followers: Followers | None = None
        self._loaded: LoadedModel = self._load(model)
        self.shape: ModelShape = self._loaded.shape
        self.tokenizer: Any | None = self._loaded.tokenizer
        self.memory_bytes = self._memory_bytes(device)
        self.eos_ids = _eos_ids(self._loaded)
        self._warm: set[tuple[str, str, bool, bool, int, str]] = set()
        self._clean_bytes: int | None = None
        self._activation_bytes: dict[str, int] = {}
        self._rehearses_graphs = rehearses_graphs
        self._compiled: CompiledModel | None = None
        self._drafts: dict[str, LoadedModel] = {}

    def _load(self, model: ModelConfig) -> LoadedModel:
        """The whole model, or this rank's slice, with the other ranks at work on theirs."""
        if self.tensor_parallel == 1:
            return load_model(model, self.kind)
        check_gpus(self.kind, self.tensor_parallel)
        launch = Launch.of()
        starter = Spawned() if launch is None else Launched(launch)
        self._followers = Followers(
            self.tensor_parallel, model, self.kind, torch.get_num_threads(), starter
        )
        with self._followers.ended_on_error():
            return load_model(model, self.kind, self._followers.ranks)

    def close(self) -> None:
        """End the other ranks, if there are any; the device is of no use afterwards."""
        if self._followers is not None:
            self._followers.close()

    def abandon(self) -> None:
        """`close`, from a signal's handler."""
        if self._followers is not None:
            self._followers.abandon()

    @property
    def name(self) -> str:
        """What the numbers were made on."""
        count = "" if self.tensor_parallel == 1 else f" x {self.tensor_parallel}"
        return f"cuda ({torch.cuda.get_device_name(0)}){count}" if self.kind == "cuda" else "cpu"

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def executor(
        self, config: RunConfig, num_pages: int, max_len: int, groups: Sequence[LayerGroup] = ()
    ) -> Executor:
        """A fresh executor with a pool of `num_pages` that each hold the KV of one of `groups`.

        Its kernels have been compiled: those of a prefill, of a decode of two sequences, or of all
        captured batch sizes, and on a GPU those of page copies and swap. What may still compile
        inside a run: without CUDA graphs the decode of other batch sizes, and page copies of a
        draft model.
        """
        self._prepare(config)
        self._check_clean()
        max_seqs, capture = config.engine.max_num_seqs, self._capture(config)
        executor = self._build(config, num_pages, max_len, max_seqs, groups, capture)
        executor.reserve(most_tokens(config, max_len), most_samples(config))
        if self.kind == "cuda":
            warm_up_moves(executor)
        return executor

    def beside_pool(self, config: RunConfig, longest_len: int) -> BesidePool:
        """Weights, and what the largest step takes beside them and the pool: measured by running
        it, once for the same settings, where the device has counters; else estimated.
        longest_len: tokens of the longest sequence."""
        if self.memory is None:
            return estimated_beside_pool(config, self.shape)
        self._prepare(config)
        self._check_clean()
        weight_bytes = self.memory.allocated_bytes()
        longest_len = min(longest_len, self.shape.max_positions)
        key = _step_key(config, most_tokens(config, longest_len))
        if key not in self._activation_bytes:
            peak = self._measure(config, longest_len, self.memory)
            self._activation_bytes[key] = peak - weight_bytes
        ranks = self.tensor_parallel  # of which none has more than this one, which gathers logits
        return BesidePool(ranks * weight_bytes, ranks * self._activation_bytes[key], "measured")

    def _measure(self, config: RunConfig, longest_len: int, memory: DeviceMemory) -> int:
        """Peak bytes of the largest step on a pool that just holds it, less that pool, and what
        captured graphs keep to themselves."""
        step = largest_step(config, self.shape, longest_len)
        max_len = self.shape.max_positions
        max_seqs, capture = config.engine.max_num_seqs, self._capture(config)
        executor = self._build(config, pages_of(step), max_len, max_seqs, capture=capture)
        try:
            executor.reserve(most_tokens(config, longest_len), most_samples(config))
            executor.execute(step)
            return memory.peak_bytes() - executor.kv_bytes + executor.captured.num_bytes
        finally:
            executor.close()

    def _prepare(self, config: RunConfig) -> None:
        """Load and compile what is loaded and compiled once."""
        attention, kv = config.attention, config.kv
        forward = (config.engine.fused, config.engine.compile)
        key = (attention.kind, attention.backend, *forward, kv.page_size, kv.dtype)
        self._draft(config)  # before the memory is looked at
        if key not in self._warm:
            num_pages_each = -(-WARM_UP_LEN // kv.page_size)
            warm = self._build(config, 2 * num_pages_each, WARM_UP_LEN, max_seqs=2)
            warm_up_forward(warm, num_pages_each)
            with self.own_cores():
                pass  # what does that is compiled
            warm.close()
            self._warm.add(key)

    def own_cores(self) -> AbstractContextManager[None]:
        """Of a CPU; ranks that share one are left to the system."""
        if self.kind != "cpu" or self.tensor_parallel > 1:
            return nullcontext()
        from kernels.cpu_cores import own_cores

        cores: AbstractContextManager[None] = own_cores()
        return cores

    def is_clean(self) -> bool:
        """Nothing but the models is on the device, as before the first run."""
        if self.memory is None:
            return True
        gc.collect()
        self.memory.give_back()
        left = self.memory.allocated_bytes()
        return self._clean_bytes is None or left <= self._clean_bytes + MOST_BYTES_LEFT

    def _check_clean(self) -> None:
        """The run before left nothing on the GPU; its peak does not count for the next."""
        gc.collect()
        if self.memory is None:
            return
        held = self.memory.allocated_bytes()
        if self._clean_bytes is None:
            self._clean_bytes = held
        if held > self._clean_bytes + MOST_BYTES_LEFT:
            raise RuntimeError(
                f"the run before left {held - self._clean_bytes} bytes on the GPU: "
                "repeat the command, and this run starts in a new process"
            )
        self.memory.reset_peak()

    def peak_memory_bytes(self) -> int:
        """Peak bytes allocated on the GPU by this run; on a CPU, bytes resident at its end."""
        if self.memory is not None:
            return self.memory.peak_bytes()
        return int(psutil.Process().memory_info().rss)

    def _build(
        self,
        config: RunConfig,
        num_pages: int,
        max_len: int,
        max_seqs: int,
        groups: Sequence[LayerGroup] = (),
        capture: Capture | None = None,
    ) -> TorchExecutor:
        kind = config.attention.kind
        if kind == "auto":
            kind = "contiguous" if config.allocator.name == "contiguous" else "paged"
        return TorchExecutor(
            self._loaded,
            num_pages=num_pages,
            page_size=config.kv.page_size,
            max_seqs=max_seqs,
            max_len=max_len,
            attention=kind,
            kernels=config.attention.backend,
            kv_dtype=config.kv.dtype,
            host_pages=host_pages(config, num_pages, max(1, len(groups))),
            fused=config.engine.fused,
            draft=self._draft(config),
            groups=groups,
            capture=capture,
            samples=config.workload.temperature > 0,
            compiled=self._compiled_model() if config.engine.compile else None,
            followers=self._followers,
        )

    def _compiled_model(self) -> CompiledModel:
        """The model through torch.compile: compiled once, whatever pools it runs on."""
        if self._compiled is None:
            self._compiled = CompiledModel(self._loaded.model)
        return self._compiled

    def _capture(self, config: RunConfig) -> Capture | None:
        """What records decode steps, if anything does: no more than one rank can."""
        if not config.engine.cuda_graph or self._followers is not None:
            return None
        if self.kind == "cuda":
            return CudaCapture(torch.device("cuda", torch.cuda.current_device()))
        return Rehearsal() if self._rehearses_graphs else None

    def _draft(self, config: RunConfig) -> LoadedModel | None:
        """The draft model of speculative decoding, loaded once."""
        wanted = draft_model(config)
        if wanted is None:
            return None
        key = repr(wanted)
        if key not in self._drafts:
            self._drafts[key] = load_model(wanted, self.kind)
            self._clean_bytes = None  # there is more that stays
        return self._drafts[key]

    def _memory_bytes(self, device: DeviceConfig) -> int | None:
        """Of all ranks together."""
        if self.memory is not None:
            return self.memory.total_bytes * self.tensor_parallel
        if device.imagined_memory_gib is None:
            return None
        return int(device.imagined_memory_gib * 2**30) * self.tensor_parallel


def _step_key(config: RunConfig, num_tokens: int) -> str:
    """What the largest step's memory depends on."""
    workload = config.workload
    kv = replace(config.kv, pool_tokens=None, pool_demand=None, memory_fraction=None)
    chosen = (workload.temperature, workload.top_k, workload.top_p, workload.beam_width)
    return repr((config.attention, config.engine, kv, chosen, num_tokens))


def _eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """End-of-sequence tokens of a checkpoint or a preset, where it names any."""
    ids = getattr(loaded.model.generation_config, "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])

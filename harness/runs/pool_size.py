"""How many pages the KV pool has."""

from __future__ import annotations

from typing import Literal, NamedTuple

from harness.config import ConfigError, RunConfig
from harness.engine.device.model_shape import (
    DTYPE_BYTES,
    ModelConfig,
    ModelShape,
    model_preset,
    model_presets,
    model_shape,
)
from harness.engine.request import Workload

DEFAULT_MEMORY_FRACTION = 0.9
DEFAULT_POOL_DEMAND = 16.0

_LONGEST_REQUESTS_IN_POOL = 4


class BesidePool(NamedTuple):
    """Bytes on all GPUs that the pool cannot have. source: whether a step was run to measure
    them, or they were estimated from the model's shape. state_bytes: of all sequences that may run
    at once, beside their KV."""

    weight_bytes: int
    activation_bytes: int
    source: Literal["measured", "estimated"]
    state_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.state_bytes


def pool_pages(
    config: RunConfig,
    shape: ModelShape,
    workload: Workload,
    device_bytes: int | None,
    beside: BesidePool | None = None,
) -> int:
    """Pages of the pool, by kv.pool_tokens, kv.pool_demand or kv.memory_fraction.

    device_bytes: memory of the device, real or imagined; None on a CPU where none was
    imagined, and then not `needs_device_memory(config)`. kv.pool_demand is a multiple of the
    mean length that the workload's requests reach. beside: what else is in that memory; None
    estimates it. Raises ConfigError where nothing is left for a single page. A draft model's
    pool, of as many pages, comes out of the same bytes.
    """
    kv = config.kv
    tokens: int
    if kv.pool_tokens is not None:
        tokens = kv.pool_tokens
        source = f"kv.pool_tokens={tokens}"
    elif not is_what_memory_leaves(config, device_bytes):
        demand = kv.pool_demand or DEFAULT_POOL_DEMAND
        tokens = round(demand * mean_final_len(workload))
        source = f"kv.pool_demand={demand}"
    else:
        assert device_bytes is not None  # `needs_device_memory` was checked before
        fraction = kv.memory_fraction or DEFAULT_MEMORY_FRACTION
        beside = beside or estimated_beside_pool(config, shape)
        left = fraction * device_bytes - beside.num_bytes
        tokens = int(left // kv_bytes_per_token(config, shape))
        source = (
            f"kv.memory_fraction={fraction} of {device_bytes / 2**30:.2f} GiB less "
            f"{beside.weight_bytes / 2**30:.2f} GiB of weights and "
            f"{beside.activation_bytes / 2**30:.2f} GiB of activations ({beside.source})"
        )
        if beside.state_bytes:
            source += f" and {beside.state_bytes / 2**30:.2f} GiB of states"
    draft = draft_bytes_per_token(config)
    if draft:
        own = kv_bytes_per_token(config, shape)
        tokens = tokens * own // (own + draft)
        source += f", shared with the draft model at {draft} bytes a token beside {own},"
    pages = tokens // kv.page_size
    if pages < 1:
        raise ConfigError(
            f"{source} leaves {max(tokens, 0)} token slots, less than one page of "
            f"{kv.page_size}: raise it or lower kv.page_size"
        )
    return pages


def host_pages(config: RunConfig, num_pages: int, num_groups: int = 1) -> int:
    """Pages on the host for preempted sequences: engine.swap_tokens, else as many as the pool
    has (PagedAttention, section 4.5, bounds them so); none where nothing is swapped. A token
    takes a slot in each of `num_groups` groups of layers."""
    if config.engine.preemption != "swap":
        return 0
    if config.engine.swap_tokens is None:
        return num_pages
    return config.engine.swap_tokens // config.kv.page_size * num_groups


def needs_device_memory(config: RunConfig) -> bool:
    """The pool is asked for as a fraction of a memory."""
    return config.kv.pool_tokens is None and config.kv.memory_fraction is not None


def longest_request_len(config: RunConfig, shape: ModelShape) -> int:
    """Tokens, prompt and output, that the longest request of a fitted trace may have:
    workload.fit_len, else what the model can read, and a quarter of a pool given in tokens, so that
    requests compete for it.
    """
    if config.workload.fit_len is not None:
        return config.workload.fit_len
    longest = shape.max_positions
    if config.kv.pool_tokens is not None:
        longest = min(longest, max(2, config.kv.pool_tokens // _LONGEST_REQUESTS_IN_POOL))
    return longest


def kv_bytes_per_token(config: RunConfig, shape: ModelShape) -> int:
    """Keys and values of one token in all layers, in kv.dtype; on all GPUs of a tensor-parallel
    model, each of which has one KV head at least."""
    return _in_kv_dtype(config, shape) * kv_copies(config, shape)


def _in_kv_dtype(config: RunConfig, shape: ModelShape) -> int:
    num_bytes = shape.kv_bytes_per_token
    if config.kv.dtype == "auto":
        return num_bytes
    return num_bytes // shape.dtype_bytes * DTYPE_BYTES[config.kv.dtype]


def kv_copies(config: RunConfig, shape: ModelShape) -> int:
    """GPUs that hold the same KV head, where there are fewer heads than GPUs."""
    return max(1, config.engine.tensor_parallel // shape.num_kv_heads)


def draft_model(config: RunConfig) -> ModelConfig | None:
    """The draft model of speculative decoding: a preset, else a checkpoint. Its dtype is the
    model's own, its KV's that of the pool."""
    name = config.engine.speculation.draft
    if name is None:
        return None
    if name in model_presets():
        return model_preset(name)
    return model_preset("hub", path=name)


def draft_bytes_per_token(config: RunConfig) -> int:
    """KV of one token in the draft model, in the pool's dtype, on all GPUs; 0 without one. Ranks of
    a real run do not share it: rank 0 has all of it, and the others leave as much room."""
    draft = draft_model(config)
    if draft is None:
        return 0
    shape = model_shape(draft)
    if config.executor.kind == "torch":
        return _in_kv_dtype(config, shape) * config.engine.tensor_parallel
    return kv_bytes_per_token(config, shape)


def mean_final_len(workload: Workload) -> float:
    """Mean tokens of KV a request holds when it ends, each branch counted by itself."""
    total, count = 0, 0
    for outline in workload.outlines():
        output_len = outline.true_output_len or outline.max_tokens
        total += outline.num_sequences * (outline.num_prompt_tokens + output_len - 1)
        count += 1
    return total / max(1, count)


def is_what_memory_leaves(config: RunConfig, device_bytes: int | None) -> bool:
    """The pool takes what weights and activations leave of a memory of `device_bytes`."""
    kv = config.kv
    if kv.pool_tokens is not None:
        return False
    return kv.memory_fraction is not None or (kv.pool_demand is None and device_bytes is not None)


def estimated_beside_pool(config: RunConfig, shape: ModelShape) -> BesidePool:
    """For devices that are simulated or imagined."""
    activations = config.engine.tensor_parallel * activation_bytes(config, shape)
    states = config.engine.max_num_seqs * shape.state_bytes
    return BesidePool(shape.weight_bytes, activations, "estimated", states)


def bytes_beside_pool(config: RunConfig, shape: ModelShape) -> int:
    """Weights, activations and states, on all GPUs, estimated."""
    return estimated_beside_pool(config, shape).num_bytes


def activation_bytes(config: RunConfig, shape: ModelShape) -> int:
    """An upper estimate of a step's activations: the widest layers at a full token budget.

    Residual, attention and MLP intermediates of one layer (they are reused by the next) at
    `engine.token_budget` tokens, and logits of `engine.max_num_seqs` rows in fp32.
    """
    per_token = (8 * shape.hidden_size + 8 * shape.hidden_size) * shape.dtype_bytes
    logits = min(config.engine.max_num_seqs, config.engine.token_budget) * shape.vocab_size * 4
    return config.engine.token_budget * per_token + logits

"""Tile sizes, pipelining and occupancy of the Triton attention kernels, by GPU and shape.

Chosen from what the compiled kernels take and from what the chip needs, and to be confirmed or
changed by a sweep (`paged_attention(..., tuning=...)` takes any other choice):

- Decode is bound by memory. By Little's law an H200 needs about 4.8 TB/s x 0.9 us = 4.3 MB in
  flight, 33 KB an SM. A tile of 64 tokens of 128 x 2 bytes is 32 KB of keys and values. 3 stages
  are two buffers: one tile is used while the next is on its way, and the buffer set free is filled
  again at once, 32 to 64 KB in flight a program. Three programs an SM fit (70 KB of shared memory
  each of 227 KB; two of 163 KB on sm_80) and hide what each of them waits for. 2 stages are one
  buffer: a tile is loaded only after the one before it has been used.
- A piece of fewer than 128 tokens is over before its loads have paid for its start and its join.
  Where whole sequences fill the chip already, a join (a launch, about 2 us) must be small beside
  the piece: 1024 tokens are 10 us at an SM's share of the bandwidth with three programs on it.
- Prefill is bound by the tensor cores: 128 rows are the shape of two warpgroups' products; in
  float32, and beyond a head dimension of 128, smaller tiles keep the accumulator in registers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LEAST_BLOCK_S = 128
"""Sequences whose lengths a program of the decode kernel looks at in one go, at least."""


class DecodeTuning(NamedTuple):
    """tile_n: tokens a step. programs_per_processor: how many fit on an SM together.
    least_tokens: a sequence is not cut into pieces of fewer tokens, nor of fewer than eight times
    as many where whole sequences fill the chip and `split` is None."""

    tile_n: int
    num_warps: int
    num_stages: int
    programs_per_processor: int
    least_tokens: int


class PrefillTuning(NamedTuple):
    """block_m: rows (queries x heads of a group) of a program. tile_n: tokens a step."""

    block_m: int
    tile_n: int
    num_warps: int
    num_stages: int


class AttentionTuning(NamedTuple):
    """split: None leaves the number of work items to `num_work_items`; 1 never cuts a sequence;
    n cuts the batch into at most about n pieces a KV head."""

    decode: DecodeTuning
    prefill: PrefillTuning
    split: int | None = None


_FULL_CHIP_PIECE = 8


class _Row(NamedTuple):
    capability: int  # from this one on
    element_bytes: int  # up to this, as head_dim is
    head_dim: int
    decode: DecodeTuning
    prefill: PrefillTuning


# The first row that takes a device, dtype and head size is theirs.
_ROWS = (
    _Row(90, 2, 64, DecodeTuning(128, 4, 3, 3, 128), PrefillTuning(128, 64, 8, 3)),
    _Row(90, 2, 128, DecodeTuning(64, 4, 3, 3, 128), PrefillTuning(128, 64, 8, 3)),
    _Row(90, 2, 256, DecodeTuning(32, 4, 3, 3, 128), PrefillTuning(64, 32, 8, 2)),
    _Row(0, 2, 64, DecodeTuning(128, 4, 3, 2, 128), PrefillTuning(128, 64, 8, 3)),
    _Row(0, 2, 128, DecodeTuning(64, 4, 3, 2, 128), PrefillTuning(128, 32, 8, 3)),
    _Row(0, 2, 256, DecodeTuning(32, 4, 3, 2, 128), PrefillTuning(64, 32, 8, 2)),
    _Row(0, 4, 64, DecodeTuning(32, 4, 3, 2, 128), PrefillTuning(64, 16, 8, 2)),
    _Row(0, 4, 128, DecodeTuning(32, 4, 3, 2, 128), PrefillTuning(16, 32, 4, 3)),
    _Row(0, 4, 256, DecodeTuning(16, 4, 3, 2, 128), PrefillTuning(16, 16, 4, 3)),
)


def attention_tuning(head_dim: int, dtype: torch.dtype, capability: int = 90) -> AttentionTuning:
    """The table's choice; raises ValueError for head sizes above 256."""
    if capability >= 120:
        capability = 89  # Blackwell outside of data centres has the shared memory of Ada: 99 KB
    for row in _ROWS:
        fits = dtype.itemsize <= row.element_bytes and head_dim <= row.head_dim
        if fits and row.capability <= capability:
            return AttentionTuning(row.decode, row.prefill)
    raise ValueError(
        f"head dimension {head_dim} of {dtype}: the Triton attention kernels take up to 256 in "
        "16 or 32 bits; take the reference or cpu kernels"
    )


class WorkItems(NamedTuple):
    """How a batch is shared out: into about `budget` pieces of at least `least_tokens`, for which
    `items` programs a KV head are enough. budget 0: a sequence is not cut and is an item."""

    budget: int
    items: int
    least_tokens: int


def num_work_items(
    num_seqs: int,
    num_kv_heads: int,
    processors: int,
    tuning: DecodeTuning,
    split: int | None = None,
) -> WorkItems:
    """A grid that fits the chip and depends on no length, so that a captured graph stays valid.

    Few sequences: a piece for each program that the chip holds, one wave. More sequences than
    that: twice as many, so that what is left over at the end is short, but pieces large enough to
    be worth their join; batches of short sequences are not cut then. Sequences and heads that
    fill the chip sixteen times over level out by themselves.
    """
    held = max(1, processors * tuning.programs_per_processor // num_kv_heads)
    if split == 1 or (split is None and num_seqs >= 16 * held):
        return WorkItems(0, num_seqs, 0)
    if split is not None or num_seqs < held:
        budget = split or held
        return WorkItems(budget, budget + num_seqs, tuning.least_tokens)
    return WorkItems(2 * held, 2 * held + num_seqs, _FULL_CHIP_PIECE * tuning.least_tokens)

"""Compile the Triton attention kernels for a GPU that need not be there, and count their spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton_attention import decode_tiling, prefill_tiling
from kernels.triton_cache import copy_pages_kernel, store_kv_kernel
from kernels.triton_decode import decode_join_kernel, decode_splits_kernel
from kernels.triton_prefill import prefill_kernel

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FLOAT32 = {"part_acc", "part_peak", "part_total"}
_INT32 = {"table", "start_slots", "query_start_loc", "seq_lens"}
_INT64 = {"slot_mapping", "pages"}
_SCALARS = {"scale": "fp32", "softcap": "fp32"}
_NUM_SPLITS = 8


class Variant(NamedTuple):
    """A kernel with its compile-time values, as the launchers start it on even shapes."""

    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


class Resources(NamedTuple):
    """What one thread of a compiled kernel takes; stack_bytes > 0 means that registers spill."""

    kernel: str
    registers: int
    stack_bytes: int
    shared_bytes: int


def variants(
    *,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    group: int = 4,
    has_table: bool = True,
    softcap: bool = False,
) -> Iterator[Variant]:
    """Every kernel, with the tile sizes that the launchers choose for these shapes."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    attention = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "PAGE_SIZE": page_size,
        "HAS_TABLE": has_table,
        "HAS_SOFTCAP": softcap,
        "PRECISION": "tf32" if dtype == torch.float32 else "ieee",
    }
    for kernel, tiling, more in (
        (
            decode_splits_kernel,
            decode_tiling(group, head_dim, dtype),
            {"NUM_SPLITS": _NUM_SPLITS},
        ),
        (prefill_kernel, prefill_tiling(group, head_dim, dtype), {}),
    ):
        sizes = {"BLOCK_M": tiling.block_m, "TILE_N": tiling.tile_n, **more}
        yield Variant(kernel, attention | sizes, tiling.num_warps, tiling.num_stages)
    joined = {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "NUM_SPLITS": _NUM_SPLITS}
    yield Variant(decode_join_kernel, joined, 2, 2)
    row = 8 * head_dim
    yield Variant(store_kv_kernel, {"ROW": row, "BLOCK": triton.next_power_of_2(row)}, 4, 2)
    for gather in (True, False):
        yield Variant(copy_pages_kernel, {"GATHER": gather, "BLOCK": 4096}, 4, 2)


def compile_variant(variant: Variant, dtype: torch.dtype, capability: int) -> Resources:
    """Compile for sm_`capability` (80, 90, ...) and read what the binary takes.

    Pointers and strides are taken to be divisible by 16, as they are for whole tensors with such
    head sizes; without that hint another kernel is compiled than the one that runs. Needs an
    environment without TRITON_INTERPRET.
    """
    names = variant.kernel.arg_names
    plain = {variant.kernel.params[i].name for i in range(len(names)) if _unhinted(variant, i)}
    signature = {name: _type_of(name, variant.constants, dtype) for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in variant.constants and name not in _SCALARS and name not in plain
    }
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _usage_of(compiled.asm["cubin"])
    return Resources(variant.kernel.__name__, registers, stack, compiled.metadata.shared)


def _unhinted(variant: Variant, index: int) -> bool:
    """`do_not_specialize` arguments."""
    parameter = variant.kernel.params[index]
    return bool(parameter.do_not_specialize)


def _type_of(name: str, constants: dict[str, Any], dtype: torch.dtype) -> str:
    if name in constants:
        return "constexpr"
    if name in _FLOAT32:
        return "*fp32"
    if name in _INT32:
        return "*i32"
    if name in _INT64:
        return "*i64"
    if name in _SCALARS:
        return _SCALARS[name]
    is_count = name.endswith("stride") or name in {"window", "num_seqs", "row_size", "num_staged"}
    return "i32" if is_count else f"*{_TYPES[dtype]}"


def _usage_of(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from the cuobjdump that triton brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{tool} printed no resource usage: {text!r}")
    return int(found[1]), int(found[2])

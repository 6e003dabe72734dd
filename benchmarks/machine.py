"""The machine: its GPU and software, and the rates that everything else is held against.

    python -m benchmarks.machine --folder results/gpu/environment

Read bandwidth is what a kernel reaches that only reads (the best of some block sizes, and of
torch's own sum), copy bandwidth counts bytes read and written, the matrix product is of bf16 with
random operands. Memory bandwidth is measured on buffers far larger than the L2 cache.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import torch

from benchmarks.telemetry import Telemetry
from benchmarks.timing import Timer, timer_for
from experiments.gpu.child import conclude, guarded, parser, task
from experiments.gpu.rows import RowLog

_PACKAGES = (
    "torch", "triton", "transformers", "numpy", "hydra-core", "omegaconf", "flashinfer-python",
    "vllm", "flash-attn", "nvidia-ml-py",
)  # fmt: skip
_GIB = 2**30
_CPU_CACHE_BYTES = 64 * 2**20
_READ_SIZES = ((2048, 1), (4096, 1), (4096, 4), (8192, 2), (8192, 8))

Measure = Callable[[Timer, torch.device], dict[str, Any]]
"""Gives a rate as `value` and `unit`."""


def main() -> int:
    given = task(parser(__doc__))
    log = given.log()
    device = torch.device("cpu" if given.dry else "cuda")
    timer = timer_for(device)
    log.add("environment", **describe(device))
    for case, measure in (
        ("read bandwidth", read_row),
        ("copy bandwidth", copy_row),
        ("matrix product", matrix_row),
    ):
        if not log.is_done(case):
            guarded(log, case, _rate, log, case, measure, timer, device)
    return conclude(log)


def _rate(log: RowLog, case: str, measure: Measure, timer: Timer, device: torch.device) -> None:
    values = measure(timer, device)
    log.add(case, **values)
    print(f"{case}: {values['value']:,.1f} {values['unit']}", flush=True)


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, and the GPU's figures where there is one."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "num_cores": os.cpu_count(),
    }
    if device.type != "cuda":
        return {**found, "device": "cpu"}
    gpu = torch.cuda.get_device_properties(device)
    return {
        **found,
        "device": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / _GIB, 1),
        "l2_mib": round(l2_bytes(device) / 2**20, 1),
        "driver": _driver(),
        **Telemetry().sample(),
    }


def l2_bytes(device: torch.device) -> int:
    """Size of the last cache before memory: a GPU's L2; of a CPU, what no last level is larger
    than by much; 0 where kernels are interpreted, whose times mean nothing."""
    if device.type != "cuda":
        return 0 if is_interpreted() else _CPU_CACHE_BYTES
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * 2**20))


def is_interpreted() -> bool:
    """Triton's kernels run in its interpreter: sizes must be tiny."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def read_row(timer: Timer, device: torch.device) -> dict[str, Any]:
    """GB/s of reading alone, checked to have read everything."""
    words = min(2 * _GIB, _free_bytes(device) // 8) if device.type == "cuda" else _cpu_words()
    # small numbers: no sum of a program's words overflows
    source = torch.randint(-512, 512, (words,), dtype=torch.int32, device=device)
    best = max(_read_variants(timer, source), key=lambda each: each[1])
    return {"value": best[1], "unit": "GB/s", "variant": best[0], "bytes": 4 * words}


def _read_variants(timer: Timer, source: torch.Tensor) -> Iterator[tuple[str, float]]:
    num_bytes = source.numel() * source.element_size()
    is_gpu = source.device.type == "cuda"
    if is_gpu or is_interpreted():
        from benchmarks.read_kernel import num_programs, read_all

        total = int(source.sum(dtype=torch.int64))
        for block, tiles in _READ_SIZES if is_gpu else ((1024, 2),):
            sums = source.new_zeros(num_programs(source.numel(), block, tiles))
            taken = timer.time([partial(read_all, source, sums, block, tiles)])
            if int(sums.sum(dtype=torch.int64)) != total:
                raise RuntimeError(f"the kernel of block {block} did not read every word once")
            yield f"kernel, block {block} x {tiles}", num_bytes / taken.median_us / 1e3
    flat = source.view(torch.float32)
    taken = timer.time([lambda: torch.sum(flat)])
    yield "torch.sum", num_bytes / taken.median_us / 1e3


def copy_row(timer: Timer, device: torch.device) -> dict[str, Any]:
    """GB/s of a copy on the device, bytes read and written."""
    words = min(_GIB, _free_bytes(device) // 16) if device.type == "cuda" else _cpu_words()
    source = torch.randn(words, device=device)
    target = torch.empty_like(source)
    taken = timer.time([lambda: target.copy_(source)])
    return {"value": 8 * words / taken.median_us / 1e3, "unit": "GB/s", "bytes": 8 * words}


def matrix_row(timer: Timer, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a large bf16 product on random operands."""
    n = 8192 if device.type == "cuda" else 64 if is_interpreted() else 1024
    left, right = torch.randn(2, n, n, device=device, dtype=torch.bfloat16).unbind()
    out = torch.empty_like(left)
    taken = timer.time([lambda: torch.mm(left, right, out=out)], limit_s=0.5)
    return {"value": 2 * n**3 / taken.median_us / 1e6, "unit": "TFLOP/s", "size": n}


def _cpu_words() -> int:
    return 5000 if is_interpreted() else 2**26


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # as in telemetry: there is no way to know
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())

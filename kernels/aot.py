"""`python -m kernels.aot`: compile the Triton kernels for GPUs that need not be there, and list the
registers, shared memory and spilled bytes of every variant that the model presets use (by default
those of 16 bits; the others are made for a CPU).

A module joins by defining `variants` (see `kernels.variant`) and standing in MODULES.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.tuning import LEAST_BLOCK_S
from kernels.variant import KernelShape, Variant

MODULES = (
    "triton_decode",
    "triton_prefill",
    "triton_cache",
    "triton_rope",
    "triton_norm",
    "triton_activation",
)
"""Modules of this package whose kernels are compiled."""

PRESETS = {
    "llama_3_1_8b": KernelShape(torch.bfloat16, 32, 8, 128, 4096, 14336),
    "llama_3_2_1b": KernelShape(torch.bfloat16, 32, 8, 64, 2048, 8192),
    "llama_13b": KernelShape(torch.float16, 40, 40, 128, 5120, 13824),
    "opt_13b": KernelShape(torch.float16, 40, 40, 128, 5120, 20480),
    "opt_66b": KernelShape(torch.float16, 72, 72, 128, 9216, 36864),
    "opt_175b": KernelShape(torch.float16, 96, 96, 128, 12288, 49152),
    "small": KernelShape(torch.float32, 8, 4, 64, 512, 1408),
    "small_draft": KernelShape(torch.float32, 2, 1, 64, 128, 352),
    "tiny": KernelShape(torch.float32, 4, 2, 16, 64, 128),
    "tiny_32k": KernelShape(torch.float32, 4, 2, 16, 64, 128),
    "tiny_32k_window": KernelShape(torch.float32, 4, 2, 16, 64, 128, window=True),
    "tiny_32k_alternating": KernelShape(torch.float32, 4, 2, 16, 64, 128, window=True),
}
"""conf/model's shapes."""

HUB_SHAPES = {
    "gemma_2_9b": KernelShape(torch.bfloat16, 16, 8, 256, 3584, 14336, window=True, softcap=True),
    "mistral_7b": KernelShape(torch.bfloat16, 32, 8, 128, 4096, 14336, window=True),
    "qwen_2_7b": KernelShape(torch.bfloat16, 28, 4, 128, 3584, 18944),
    "phi_2": KernelShape(torch.float16, 32, 32, 80, 2560, 10240),
    "phi_3_mini": KernelShape(torch.bfloat16, 32, 32, 96, 3072, 8192),
    "llama_3_1_8b_fp32": KernelShape(torch.float32, 32, 8, 128, 4096, 14336),
}
"""Shapes that model=hub brings: head sizes, groups, windows and caps that no preset has."""

SHAPES = PRESETS | HUB_SHAPES
_GPU_PRESETS = [name for name, shape in PRESETS.items() if shape.dtype != torch.float32]

CAPABILITIES = (80, 90, 100)
PAGE_SIZES = (1, 16, 64, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOOLS = Path("backends") / "nvidia" / "bin"


class Resources(NamedTuple):
    """What one thread of a compiled kernel takes, and shared bytes a program.

    stack_bytes: local memory a thread; spilled_bytes: stores and loads of spilled registers, in
    bytes a thread, as ptxas counts them.
    """

    kernel: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int


class Row(NamedTuple):
    """One line of the report."""

    capability: int
    models: str
    setting: str
    resources: Resources


class _Job(NamedTuple):
    """Picklable: a variant is found again by its place among its module's."""

    models: str
    shape: KernelShape
    module: str
    place: int
    capability: int


def variants(shape: KernelShape, modules: Iterable[str] = MODULES) -> Iterator[Variant]:
    """Every kernel as its launcher starts it for this shape."""
    for module in modules:
        yield from importlib.import_module(f"kernels.{module}").variants(shape)


def compile_variant(variant: Variant, capability: int) -> Resources:
    """Compile for sm_`capability` (80, 90, ...) and read what the binary takes.

    Raises RuntimeError where triton was imported with TRITON_INTERPRET: nothing is compiled then.
    """
    compiled = compile_kernel(variant, capability)
    registers, stack = _usage_of(compiled.asm["cubin"])
    # a stack may hold an array instead of spilled registers: only ptxas tells
    spilled = _spilled_bytes(compiled.asm["ptx"], capability) if stack else 0
    name = variant.kernel.__name__
    return Resources(name, registers, stack, spilled, compiled.metadata.shared)


def compile_kernel(variant: Variant, capability: int) -> Any:
    """Triton's compiled kernel: `.asm` has "ttgir", "ptx" and "cubin"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(variant.kernel, "arg_names") or triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: unset it to compile kernels")
    names = list(variant.kernel.arg_names)
    types = {name: variant.types.get(name, "constexpr") for name in names}
    missing = [n for n in names if n not in variant.types and n not in variant.constants]
    if missing or variant.types.keys() & variant.constants.keys():
        raise ValueError(f"{variant.kernel.__name__}: {missing} have neither a type nor a value")
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if types[name].endswith(":16")
    }
    source = ASTSource(
        fn=variant.kernel,
        signature={name: kind.removesuffix(":16") for name, kind in types.items()},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs=hints,
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def report(
    shapes: dict[str, KernelShape],
    capabilities: Sequence[int],
    page_sizes: Sequence[int | None],
    modules: Sequence[str] = MODULES,
    processes: int = 1,
) -> Iterator[Row]:
    """A row for each distinct variant, in the order of capabilities, models and kernels.

    Models that ask for the same variant share a row. processes > 1 compiles side by side.
    """
    jobs = list(_jobs(shapes, capabilities, page_sizes, modules))
    if processes == 1:
        yield from map(_run_job, jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(_run_job, jobs, chunksize=4)


def _jobs(
    shapes: dict[str, KernelShape],
    capabilities: Sequence[int],
    page_sizes: Sequence[int | None],
    modules: Sequence[str],
) -> Iterator[_Job]:
    for capability in capabilities:
        found: dict[str, _Job] = {}
        for model, base in shapes.items():
            for page_size in page_sizes:
                shape = base._replace(page_size=page_size, capability=capability)
                for module in modules:
                    for place, variant in enumerate(variants(shape, [module])):
                        key = _key(variant)
                        known = found.get(key, _Job("", shape, module, place, capability))
                        models = dict.fromkeys([*known.models.split(), model])
                        found[key] = known._replace(models=" ".join(models))
        yield from found.values()


def _key(variant: Variant) -> str:
    return repr((variant.kernel.__name__, *variant[1:]))


def _run_job(job: _Job) -> Row:
    variant = list(variants(job.shape, [job.module]))[job.place]
    setting = _setting(variant, job.shape)
    return Row(job.capability, job.models, setting, compile_variant(variant, job.capability))


def _setting(variant: Variant, shape: KernelShape) -> str:
    """The compile-time values that tell a kernel's variants apart, in words."""
    parts = [f"{shape.element} D {shape.head_dim} group {shape.group}"]
    if "PAGE_SIZE" in variant.constants:
        parts.append(f"page {shape.page_size}" if shape.page_size else "no table")
    for constant, word in (("HAS_WINDOW", "window"), ("HAS_SOFTCAP", "softcap")):
        parts += [word] if variant.constants.get(constant) else []
    if "HAS_SPLITS" in variant.constants:
        parts.append("split" if variant.constants["HAS_SPLITS"] else "whole")
    if variant.constants.get("BLOCK_S", 0) > LEAST_BLOCK_S:
        parts.append(f"of {variant.constants['BLOCK_S']} sequences")
    return " ".join(parts)


def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / _TOOLS / name


def _usage_of(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from the cuobjdump that triton brings along."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool("cuobjdump")), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{command[0]} printed no resource usage: {text!r}")
    return int(found[1]), int(found[2])


def _spilled_bytes(ptx: str, capability: int) -> int:
    tool = _tool("ptxas-blackwell" if capability >= 100 else "ptxas")
    target = re.search(r"^\.target (\S+?),?$", ptx, re.MULTILINE)
    name = target[1].rstrip(",") if target else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(tool), "-v", f"--gpu-name={name}", str(source), "-o", f"{folder}/cubin"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 if any variant spills."""
    parsed = _parser().parse_args(arguments)
    shapes = {name: SHAPES[name] for name in parsed.models}
    if parsed.dtype:
        shapes = {n: s._replace(dtype=DTYPES[parsed.dtype]) for n, s in shapes.items()}
    pages = [size or None for size in parsed.page_sizes]
    count, spilling = 0, 0
    print(f"{'sm':>3}  {'kernel':20} {'regs':>4} {'shared':>7} {'spilled':>7}  variant")
    for row in report(shapes, parsed.capabilities, pages, parsed.modules, parsed.processes):
        count += 1
        spilling += row.resources.spilled_bytes > 0
        print(
            f"{row.capability:>3}  {row.resources.kernel:20} {row.resources.registers:>4} "
            f"{row.resources.shared_bytes:>7} {row.resources.spilled_bytes:>7}  "
            f"{row.setting} ({row.models})",
            flush=True,
        )
    print(f"{count} variants, {spilling} with spilled registers")
    return 1 if spilling else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__)
    add = parser.add_argument
    add("--capabilities", type=int, nargs="+", default=CAPABILITIES, metavar="SM")
    add(
        "--models",
        nargs="+",
        choices=SHAPES,
        default=_GPU_PRESETS,
        metavar="MODEL",
        help=f"of {', '.join(SHAPES)}; the presets of 16 bits if not given",
    )
    add(
        "--page-sizes",
        type=int,
        nargs="+",
        default=[*PAGE_SIZES, 0],
        metavar="N",
        help="0 is KV without a table",
    )
    add("--dtype", choices=DTYPES, help="instead of each model's own")
    add("--modules", nargs="+", choices=MODULES, default=list(MODULES), metavar="MODULE")
    add("--processes", type=int, default=min(8, len(os.sched_getaffinity(0))))
    return parser


if __name__ == "__main__":
    sys.exit(main())

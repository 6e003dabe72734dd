"""The stages of `python -m experiments gpu`: what each runs, how long it may, of what code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_KERNELS = ("kernels",)
_ENGINE = ("kernels", "harness", "allocators", "conf/model")


@dataclass(frozen=True, slots=True)
class Stage:
    """command: arguments of the interpreter, before those of `experiments.gpu.child`. limit_s: of
    the whole process on a GPU, dry_limit_s on a CPU; it is told three quarters of it, to cut cases
    rather than to be ended. code: folders and files below the root that decide its rows.
    interpreted: in a dry run, Triton's kernels are interpreted. on_request: only with --only."""

    name: str
    title: str
    command: tuple[str, ...]
    limit_s: float
    dry_limit_s: float
    code: tuple[str, ...]
    interpreted: bool = True
    on_request: bool = False

    def files(self) -> list[Path]:
        """Sources behind the rows."""
        files: set[Path] = set()
        for name in (*self.code, "experiments/gpu"):
            path = ROOT / name
            found = path.rglob("*") if path.is_dir() else [path]
            files |= {file for file in found if file.suffix in (".py", ".yaml")}
        return sorted(files)


def _sweep(name: str, limit_s: float) -> Stage:
    return Stage(
        name,
        f"python -m harness experiment={name} preset=gpu",
        ("-m", "experiments.gpu.sweep", "--experiment", name),
        limit_s,
        180,
        (*_ENGINE, "conf"),
        interpreted=False,
    )


STAGES: Sequence[Stage] = (
    Stage(
        "environment", "the machine, and the rates it reaches",
        ("-m", "benchmarks.machine"), 40, 90, ("benchmarks",),
    ),
    Stage(
        "kernel_checks", "every kernel against the reference in higher precision",
        ("-m", "experiments.gpu.kernel_checks"), 120, 180, _KERNELS,
    ),
    Stage(
        "model_checks", "logits and tokens of the engine against transformers' own attention",
        ("-m", "experiments.gpu.model_checks"), 90, 180, _ENGINE,
    ),
    Stage(
        "gpu_tests", "the tests that need a GPU",
        ("-m", "experiments.gpu.marked_tests"), 250, 180, (*_ENGINE, "tests"),
    ),
    Stage(
        "kernels", "benchmarks/kernels.py",
        ("-m", "benchmarks.kernels"), 150, 180, (*_KERNELS, "benchmarks"),
    ),
    Stage(
        "engine", "benchmarks/engine.py",
        ("-m", "benchmarks.engine"), 240, 180, (*_ENGINE, "benchmarks"),
    ),
    _sweep("sweep_page_size", 150),
    _sweep("compare_allocators", 150),
    _sweep("sweep_memory_fraction", 240),
    Stage(
        "tuning",
        "the attention kernels' tiles, warps, stages and splits",
        ("-m", "benchmarks.kernels", "--tune"),
        600,
        180,
        (*_KERNELS, "benchmarks"),
        on_request=True,
    ),
    Stage(
        "sanitizer", "the kernels under compute-sanitizer",
        ("-m", "experiments.gpu.sanitizer"), 600, 90, _KERNELS, on_request=True,
    ),
)  # fmt: skip


def python_command(stage: Stage) -> list[str]:
    """The interpreter and `stage`'s own arguments."""
    return [sys.executable, *stage.command]

"""Everything that this machine's GPU is asked, in stages, with one closing table: `python -m
experiments gpu`.

Stages, in this order: the machine's rates, correctness of kernels and models, kernel and engine
benchmarks, three sweeps with a model of Llama 3.1 8B's shape. Each is a process of its own with a
limit, writes to RESULTS_DIR/gpu as it goes, and is skipped when it is complete for this code,
device and configuration. `--dry` goes the same way on a CPU, at tiny sizes. Exit status: 0 where
every stage is complete, 1 where not, 2 for a wrong command line. `make gpu` is this with a Python
that has CUDA torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.gpu import closing, device
from experiments.gpu.running import StageStatus, run_stage
from experiments.gpu.stages import ROOT, STAGES, Stage
from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.runs.display import duration
from harness.runs.interrupted import go_on, resumable, what_is_left

_EXAMPLES = """\
examples:
  python -m experiments gpu                             # every stage that is not complete
  python -m experiments gpu --dry                       # the same way on a CPU
  python -m experiments gpu --only kernels engine       # these stages
  python -m experiments gpu --again kernels             # measure it anew
"""


_WIDTH = 200
"""Of the closing table where the output goes to a file: a goal a line."""

_NAMES = tuple(stage.name for stage in STAGES)


def main(arguments: Sequence[str]) -> int:
    """Run what is not complete yet, print and write the closing table."""
    given = _parser().parse_args(arguments)
    chosen = _chosen(given.only)
    for name in given.again:
        if name != "all":
            _check(name)
    if not (ROOT / "benchmarks").is_dir():
        raise ConfigError(
            f"{ROOT} has no folder benchmarks/, which an installed package lacks: run this from a "
            "checkout of the repository"
        )
    found = device.find()
    if not found.has_cuda and not given.dry:
        raise ConfigError(
            "torch sees no CUDA device here: name a Python that does (make gpu "
            "GPU_PYTHON=/path/to/python3), or go the same way on a CPU (make gpu DRY=1)"
        )
    folder = given.results_dir / ("gpu_dry" if given.dry else "gpu")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(soft_wrap=True, highlight=False, width=_WIDTH, markup=False)
    say = lambda text: console.print(text, markup=False)  # noqa: E731
    say(f"device: {'cpu, a dry run: no figure below is one of a GPU' if given.dry else found.name}")
    statuses: list[StageStatus] = []

    def interrupted() -> str:
        num_done = sum(status.is_complete for status in statuses)
        repeated = go_on("experiments gpu", _without_again(given))
        return what_is_left(num_done, len(chosen) - num_done, repeated, unit="stages")

    try:
        with resumable(interrupted):
            for number, stage in enumerate(chosen):
                say(_progress(number, chosen, dry=given.dry))
                statuses.append(
                    run_stage(
                        stage, folder / stage.name, found, dry=given.dry,
                        again=stage.name in given.again or "all" in given.again, say=say,
                    )
                )  # fmt: skip
    finally:
        paths = closing.conclude(folder, statuses, found, console, dry=given.dry)
        say(f"results: {folder}/  ({', '.join(path.name for path in paths)})")
    return 0 if all(status.is_complete for status in statuses) else 1


def _progress(number: int, chosen: Sequence[Stage], *, dry: bool) -> str:
    limits_s = (stage.dry_limit_s if dry else stage.limit_s for stage in chosen[number:])
    return f"stage {number + 1} of {len(chosen)}; at most {duration(sum(limits_s))} from here"


def _without_again(given: argparse.Namespace) -> list[str]:
    """The command's arguments, but for what would forget the stages that it has done."""
    words = ["--dry"] if given.dry else []
    words += ["--only", *given.only] if given.only else []
    return [*words, "--results-dir", str(given.results_dir)]


def _chosen(only: Sequence[str]) -> list[Stage]:
    for name in only:
        _check(name)
    return [stage for stage in STAGES if (stage.name in only if only else not stage.on_request)]


def _check(name: str) -> None:
    if name not in _NAMES:
        raise ConfigError(unknown_name(name, _NAMES, "stage"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments gpu", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry", action="store_true", help="the same way on a CPU, tiny")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help=", ".join(_NAMES))
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="STAGE", help="forget what it measured; or: all"
    )
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    return parser

"""What every stage's process is told on its command line."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.gpu.rows import Budget, RowLog


@dataclass(frozen=True, slots=True)
class Task:
    """folder: where the stage writes. key: code, device and options that its rows are of. root: the
    folder of all stages. dry: go the same way on a CPU, at tiny sizes."""

    folder: Path
    key: str
    budget: Budget
    dry: bool
    extra: argparse.Namespace

    def log(self) -> RowLog:
        """The stage's rows."""
        return RowLog(self.folder, self.key, dry=self.dry)

    @property
    def root(self) -> Path:
        return self.folder.parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that `command_line` gives."""
    made = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    made.add_argument("--folder", type=Path, required=True, help="rows go there")
    made.add_argument("--key", default="by hand", help="rows of another key are dropped")
    made.add_argument("--budget", type=float, default=600.0, help="seconds; the rest is cut")
    made.add_argument("--dry", action="store_true", help="tiny sizes on a CPU")
    return made


def command_line(folder: Path, key: str, budget_s: float, dry: bool) -> list[str]:
    """Arguments for `parser`."""
    arguments = ["--folder", str(folder), "--key", key, "--budget", f"{budget_s:g}"]
    return [*arguments, "--dry"] if dry else arguments


def task(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> Task:
    """Read the command line."""
    given = made.parse_args(arguments)
    return Task(given.folder, given.key, Budget(given.budget), given.dry, given)


def guarded(
    log: RowLog, case: str, measure: Callable[..., object], *arguments: object, **facts: object
) -> None:
    """Do `measure(*arguments)`, which adds the row of `case`; what it dies of becomes that row,
    with `facts`, which say what of."""
    try:
        measure(*arguments)
    except Exception as error:  # whatever a kernel, a library or a model dies of
        traceback.print_exc(file=sys.stderr)
        text = " ".join(str(error).split())[:500]
        log.add(case, "failed", error=f"{type(error).__name__}: {text}", **facts)


def conclude(log: RowLog) -> int:
    """Say what failed and what was cut; the process's exit status."""
    for status in ("failed", "cut"):
        if cases := log.cases(status):
            print(f"{status}: {len(cases)} cases: {', '.join(cases[:8])}", flush=True)
    return 1 if log.cases("failed") else 0

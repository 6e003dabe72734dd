"""What this machine can run, and the way out for what is missing: `python -m experiments doctor`.

Looks at system, processor, memory and disk, at packages beside what the project requires, runs
each attention kernel on a tiny batch against the exact result, says which model presets fit, and
whether Weights & Biases would find a key (no network is used, and no key is shown).

Exit status: 0 where the main experiment (experiment=sweep_page_size) can run here, 1 where not,
2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.doctor.checks import Check, can_run
from experiments.doctor.kernels import kernel_checks, probe
from experiments.doctor.machine import machine_checks
from experiments.doctor.models import model_check
from experiments.doctor.packages import package_checks
from experiments.doctor.services import service_checks

_EXAMPLES = """\
examples:
  python -m experiments doctor
  python -m experiments doctor --results-dir /data/results
  python -m experiments doctor --json > machine.json
"""

_STYLES = {"ok": "green", "note": "yellow", "absent": "bold red", "failed": "bold red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, print; 0 where the main experiment can run, 1 where not."""
    given = _parser().parse_args(arguments)
    checks = list(all_checks(given.results_dir))
    if given.json:
        values = [{**check._asdict(), "stops_all": check.stops_all} for check in checks]
        print(json.dumps({"can_run": can_run(checks), "checks": values}, indent=1))
    else:
        print_checks(checks, Console(markup=False))
    return 0 if can_run(checks) else 1


def all_checks(results_dir: Path) -> Iterator[Check]:
    """Every check, in the order in which they are shown."""
    yield from machine_checks(results_dir, os.environ)
    yield from package_checks()
    said = probe()
    yield from kernel_checks(said)
    yield model_check("in memory", psutil.virtual_memory().available)
    yield from _on_gpu(said)
    yield from service_checks(os.environ, Path.home())


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """A line a check, what to do below each that is not ok, and the answer."""
    for group in dict.fromkeys(check.group for check in checks):
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False, show_edge=False)
        table.add_column(no_wrap=True, min_width=7)
        table.add_column(no_wrap=True, min_width=20)
        table.add_column(overflow="fold")
        for check in (each for each in checks if each.group == group):
            found = Text(check.found)
            if check.way_out and check.status != "ok":
                found.append(f"\n{check.way_out}", style="dim")
            table.add_row(Text(check.status, style=_STYLES[check.status]), check.name, found)
        console.print(Text(group, style="bold"))
        console.print(table)
    console.print(Text(f"\n{_answer(checks)}", style="bold"))


def _answer(checks: Sequence[Check]) -> str:
    stopping = [check.name for check in checks if check.stops_all]
    if stopping:
        return f"The main experiment cannot run here for want of: {', '.join(stopping)}"
    return "The main experiment can run here: python -m harness experiment=sweep_page_size"


def _on_gpu(said: Sequence[dict[str, Any]]) -> Iterator[Check]:
    device = next((each for each in said if each.get("device") == "cuda"), None)
    if device is not None:
        yield model_check("on the GPU", int(device["free_bytes"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments doctor",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="where runs would be written"
    )
    return parser

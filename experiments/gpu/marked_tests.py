"""The tests marked `gpu`, by pytest in this process's Python; a row a test and one a file.

Each file has a pytest of its own, so that one that takes too long or kills its process keeps no
other from being run, and a later call does only what is left.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from experiments.gpu.child import Task, conclude, parser, task
from experiments.gpu.processes import run_to_limit
from experiments.gpu.rows import RowLog
from experiments.gpu.stages import ROOT

NEEDED = ("pytest", "pytest_benchmark", "hypothesis")
_MARK = "pytest.mark.gpu"
_NO_TESTS = 5
_LEAST_S = 5.0


class Outcome(NamedTuple):
    """status: ok, failed, or absent where it was skipped."""

    name: str
    status: str
    message: str


def main() -> int:
    given = task(parser(__doc__))
    log = given.log()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        log.add("pytest", "absent", error=f"{', '.join(missing)} cannot be imported")
        print(f"absent: {', '.join(missing)}")
        return 0
    for file in marked_files():
        name = str(file.relative_to(ROOT))
        if log.is_done(name):
            continue
        if given.budget.left_s < _LEAST_S:
            log.add(name, "cut")
            continue
        run_file(given, log, file, name)
    return conclude(log)


def run_file(given: Task, log: RowLog, file: Path, name: str) -> None:
    """The tests of one file: a row each, then `name`, how the file ended."""
    report = given.folder / "tests.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", str(file), "-m", "gpu",
        f"--junitxml={report}", "-p", "no:cacheprovider",
    ]  # fmt: skip
    limit_s = given.budget.left_s
    done = run_to_limit(command, limit_s, cwd=ROOT)
    if done is None:
        log.add(name, "cut", error=f"longer than {limit_s:.0f} s")
        return
    outcomes = list(read_report(report)) if report.is_file() else []
    for outcome in outcomes:
        log.add(outcome.name, outcome.status, error=outcome.message)
    if done.returncode not in (0, _NO_TESTS):
        log.add(name, "failed", error=f"exit status {done.returncode}")
    else:
        log.add(name, "ok" if any(each.status == "ok" for each in outcomes) else "absent")


def read_report(path: Path) -> Iterator[Outcome]:
    """Outcomes out of pytest's JUnit file."""
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        status, message = "ok", ""
        for child in case:
            if child.tag in ("failure", "error"):
                status, message = "failed", child.get("message") or child.tag
            elif child.tag == "skipped":
                status, message = "absent", child.get("message") or "skipped"
        yield Outcome(name, status, " ".join(message.split())[:300])


def marked_files() -> list[Path]:
    """Test files that have such tests: others may need what a GPU machine's Python lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if _MARK in file.read_text()]


if __name__ == "__main__":
    sys.exit(main())

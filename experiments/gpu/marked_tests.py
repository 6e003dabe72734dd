"""The tests marked `gpu`, by pytest in this process's Python; a row a test."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from experiments.gpu.child import Task, conclude, parser, task
from experiments.gpu.stages import ROOT

NEEDED = ("pytest", "pytest_benchmark", "hypothesis")
_MARK = "pytest.mark.gpu"
_NO_TESTS = 5


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
    report = given.folder / "tests.xml"
    exit_code = _run_pytest(given, report)
    outcomes = list(read_report(report)) if report.is_file() else []
    for outcome in outcomes:
        log.add(outcome.name, outcome.status, error=outcome.message)
    if not outcomes:
        ended_well = exit_code in (0, _NO_TESTS)
        log.add("pytest", "absent" if ended_well else "failed", error=f"exit status {exit_code}")
    return conclude(log)


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


def _run_pytest(given: Task, report: Path) -> int:
    report.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", *map(str, marked_files()), "-m", "gpu",
        f"--junitxml={report}", "-p", "no:cacheprovider",
    ]  # fmt: skip
    try:
        return subprocess.run(command, cwd=ROOT, timeout=max(1.0, given.budget.left_s)).returncode
    except subprocess.TimeoutExpired:
        return -1


if __name__ == "__main__":
    sys.exit(main())

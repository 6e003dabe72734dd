"""The kernels' checks at small sizes under compute-sanitizer, where it is installed: reads and
writes out of bounds (memcheck), and threads that race in shared memory (racecheck)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.gpu.child import Task, command_line, conclude, parser, task
from experiments.gpu.processes import run_to_limit
from experiments.gpu.stages import ROOT

TOOLS = ("memcheck", "racecheck")
_PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin")
_ERROR_STATUS = 86


def find_tool() -> str | None:
    """compute-sanitizer's path."""
    found = shutil.which("compute-sanitizer")
    candidates = (Path(place) / "compute-sanitizer" for place in _PLACES)
    return found or next((str(path) for path in candidates if path.is_file()), None)


def main() -> int:
    given = task(parser(__doc__))
    log = given.log()
    program = None if given.dry else find_tool()
    for tool in TOOLS:
        if program is None:
            why = "a dry run" if given.dry else f"not on PATH nor in {', '.join(_PLACES)}"
            log.add(tool, "absent", error=f"compute-sanitizer: {why}")
            print(f"{tool}: absent, {why}")
        elif not log.is_done(tool):
            left_s = given.budget.left_s / (len(TOOLS) - TOOLS.index(tool))
            status, error = _run(program, tool, given, left_s)
            log.add(tool, status, error=error)
            print(f"{tool}: {status} {error}", flush=True)
    return conclude(log)


def _run(program: str, tool: str, given: Task, limit_s: float) -> tuple[str, str]:
    folder = given.folder / tool
    command = [
        program, "--tool", tool, "--error-exitcode", str(_ERROR_STATUS),
        "--target-processes", "all",
        sys.executable, "-m", "experiments.gpu.kernel_checks", "--small",
        *command_line(folder, given.key, limit_s, dry=False),
    ]  # fmt: skip
    # one allocation of torch's holds many tensors: without its cache each has bounds of its own
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.txt"
    with report.open("w") as file:
        done = run_to_limit(
            command, limit_s + 30, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done is None:
        return "cut", f"longer than {limit_s:.0f} s"
    if done.returncode == 0:
        return "ok", ""
    lines = report.read_text().splitlines()
    summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line), lines[-1:])
    return "failed", f"exit status {done.returncode}: {summary}, see {report.name}"


if __name__ == "__main__":
    sys.exit(main())

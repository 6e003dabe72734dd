"""Does what a page asks for, in a folder of its own, with this checkout's code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from page_commands import PageCommand, PageFile, Step

ROOT = Path(__file__).resolve().parents[1]
MAX_COMMAND_S = 600

_IN_SHELL = re.compile(r"[|<>;&$`*]")
_DIFFERS: Sequence[tuple[str, str]] = (
    (
        r"^(device: |\[ *\d+/\d+\] ).*\n?",
        "",
    ),  # runs end in any order where several cores share them
    (r"about [\d.]+ (s|min) to go", "about TIME to go"),
    (r"\b\d+(\.\d+)? (s|ms|min)\b", "TIME"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,12}\b", "ID"),
    (r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00)?", "WHEN"),
    (r"\b\d+ operations", "N operations"),  # as many as fit into the contract test's time
    (r"[ ─━]{2,}", "  "),  # columns are as wide as what differs in them
)


class Done(NamedTuple):
    """output: of both streams."""

    status: int
    output: str


class Runner(Protocol):
    """Runs one command in a folder."""

    def __call__(self, command: str, folder: Path) -> Done: ...


def as_typed(command: str, folder: Path) -> Done:
    """A shell in which `python` is this one, and `make` what it stands for."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MAX_COMMAND_S,
    )
    return Done(done.returncode, done.stdout)


@contextmanager
def warm() -> Iterator[Runner]:
    """`as_typed`, but that Python's commands run in forks of one process (see warm_python.py)."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "docs" / "warm_python.py")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    sending, answers = process.stdin, process.stdout

    def run(command: str, folder: Path) -> Done:
        line = command.replace("\\\n", " ")
        words = [] if _IN_SHELL.search(line) else shlex.split(line, comments=True)
        if words[:1] != ["python"]:
            return as_typed(command, folder)
        output = folder / ".output"
        request = {"folder": str(folder), "arguments": words[1:], "output": str(output)}
        sending.write(json.dumps(request) + "\n")
        sending.flush()
        status = answers.readline()
        if not status:
            raise RuntimeError(f"the warm process ended over {command!r}")
        text = output.read_text()
        output.unlink()
        return Done(int(status), text)

    try:
        yield run
    finally:
        sending.close()
        process.wait(timeout=20)


def environment() -> dict[str, str]:
    """That of a reader who stands in a checkout with its virtual environment active."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "110",
        "PYTHONWARNINGS": "ignore",
    }


def copy_checkout(folder: Path) -> None:
    """The project's packages, in `folder`, where commands then find them before all others."""
    for name in ("allocators", "conf", "experiments", "harness", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def do_step(step: Step, folder: Path, run: Runner) -> Done | None:
    """Write or change the file, or run the command; None for a file."""
    if isinstance(step, PageCommand):
        return run(step.command, folder)
    path = folder / step.name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = step.text if isinstance(step, PageFile) else step.made_to(path.read_text())
    path.write_text(text)
    return None


def comparable(output: str) -> str:
    """What is the same each time a simulated command runs: no times, ids or order of runs."""
    for pattern, replacement in _DIFFERS:
        output = re.sub(pattern, replacement, output, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in output.splitlines()).strip("\n")

"""Processes that are ended at a limit, with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_to_limit(
    command: Sequence[str], limit_s: float, **options: Any
) -> subprocess.CompletedProcess[str] | None:
    """Run `command` with `options` of Popen; None where it was ended after `limit_s` seconds. A GPU
    keeps the memory of a child that outlives it, so those are ended too, whatever interrupts this.
    """
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:
                end(process)
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def end(process: subprocess.Popen[str]) -> None:
    """Kill `process`, which leads a session of its own, and what it started, in any session."""
    started = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    """Children, their children and so on, where the system lists processes in /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended just now
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [root]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found

"""What is written beside its place and moved there in one rename, and what writers that are gone
left of it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from pathlib import Path

import psutil

from harness.runs.claims import holder_of, is_claimed

_ABANDONED_AFTER_S = 3600.0
"""What another machine has half-written is left alone for so long after it was last touched, and
as long as its run is claimed."""


def partial_path(path: Path) -> Path:
    """Where this process writes what is to be at `path`: `.NAME.HOST.PID.partial` beside it, which
    nothing reads."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")


def remove_half_written(root: Path) -> None:
    """Delete the files and folders in `root` that writers which are gone have not finished; those
    of living ones, here or on other machines, are let be."""
    for path in root.glob(".*.partial"):
        if not _is_abandoned(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    run_id = path.name[1:].split(".")[0]
    here = re.fullmatch(rf".*\.{re.escape(platform.node())}\.(\d+)\.partial", path.name)
    holder = holder_of(path.parent, run_id)
    if here and (holder is None or holder.process.is_of_this_machine):
        return not _is_alive(int(here[1]))
    if is_claimed(path.parent, run_id):
        return False
    try:
        touched_s = max(each.stat().st_mtime for each in (path, *path.glob("*")))
    except FileNotFoundError:
        return False
    return time.time() - touched_s > _ABANDONED_AFTER_S


def _is_alive(pid: int) -> bool:
    """A process that nobody has buried yet writes no more."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

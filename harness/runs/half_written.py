"""What is written beside its place and moved there in one rename, and what writers that are gone
left of it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: it is put there in one rename once the block has
    ended well. Otherwise what was there stays. A device or a pipe is written to as it is."""
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """A file with this content (text as UTF-8), put in its place in one rename."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_half_written(root: Path) -> None:
    """Delete the files and folders in `root` and its `figures` that writers which are gone have not
    finished; those of living ones, here or on other machines, are let be."""
    for path in chain(root.glob(".*.partial"), root.glob("figures/.*.partial")):
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
    return abs(time.time() - touched_s) > _ABANDONED_AFTER_S  # nobody writes in the future


def _is_alive(pid: int) -> bool:
    """A process that nobody has buried yet writes no more."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

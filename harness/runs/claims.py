"""Who does a run: claims in a results folder that several commands, on several hosts, share.

A claim is a folder `.RUN_ID.claim` with one empty file whose name is its holder. It appears with
that file in one rename, which fails where another holder is; and it is taken over from a holder
that is gone by renaming the file of that very holder, which succeeds for one taker alone and never
for one that comes too late. Both are atomic on file systems that machines share (NFS, Lustre).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from harness.runs.processes import ProcessName, this_process

HEARTBEAT_S = 20.0
"""How often a holder says that it is still there."""

GONE_AFTER_S = 300.0
"""A holder on another machine that has not said so for this long is gone: many heartbeats, and
longer than shared file systems keep what they remember of a file (NFS: a minute). On the same
machine its process is looked at instead."""

_FIELDS = 7


class Holder(NamedTuple):
    """Of a claim. since_s: Unix time by its own clock. command: see `Claims`. path: the file that
    stands for it."""

    host: str
    process: ProcessName
    since_s: float
    command: str
    path: Path

    def is_gone(self) -> bool:
        """Its process has ended, or on another machine has been silent for GONE_AFTER_S. A sign
        from the future is none: a living holder's is of now, by the file system's clock."""
        if self.process.is_of_this_machine:
            return not self.process.is_alive()
        try:
            return abs(self.silent_s()) > GONE_AFTER_S
        except OSError:
            return False  # released or taken over meanwhile: who looks again sees by whom

    def silent_s(self) -> float:
        """Seconds since its last sign, below 0 for one from the future. Raises OSError where it
        holds the run no more."""
        return _now_s(self.path.parent.parent) - self.path.stat().st_mtime

    def in_words(self) -> str:
        """Who it is, when it was last heard of, and how to overrule it."""
        try:
            silent_s = self.silent_s()
        except OSError:
            return f"process {self.process.pid} on {self.host}"
        sign = f"{silent_s:.0f} s ago" if silent_s >= 0 else f"{-silent_s:.0f} s in the future"
        return (
            f"process {self.process.pid} on {self.host}, last sign of life {sign}; if it is gone, "
            f"delete {self.path.parent}/"
        )


class Claims:
    """Those that this process holds; a thread keeps them alive. Released when it is left. command:
    a name for that on whose behalf they are held, where it started others to hold them."""

    def __init__(self, command: str = "") -> None:
        self._command = command
        self._held: dict[Path, Path] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for folder in list(self._held):
            self._release(folder)

    def take(self, root: Path, run_id: str, known_gone: Holder | None = None) -> bool:
        """Claim a run unless another holds it; from one that is gone it is taken over. known_gone:
        a holder whose end the caller knows of in another way."""
        folder = _folder(root, run_id)
        name = _own_name(self._command)
        with self._lock:  # before it is: whatever interrupts this leaves no claim behind
            self._held[folder] = folder / name
        if _claim(root, run_id, name, known_gone):
            self._keep_alive()
            return True
        with self._lock:
            del self._held[folder]
        return False

    def release(self, root: Path, run_id: str) -> None:
        """Give a run up, which is stored by now or is to be done by others."""
        self._release(_folder(root, run_id))

    def abandon(self) -> None:
        """Leave all as they are, for others to find that their holder is gone."""
        with self._lock:
            self._held.clear()

    def _release(self, folder: Path) -> None:
        with self._lock:
            path = self._held.pop(folder, None)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # not there: it was taken over
                folder.rmdir()  # not empty: the next holder was quick

    def _keep_alive(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, daemon=True, name="claims")
            self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                with contextlib.suppress(OSError):  # taken over, or the disk comes back later
                    os.utime(path)


def holder_of(root: Path, run_id: str) -> Holder | None:
    """Who holds a run, perhaps gone by now; None where nobody does."""
    try:
        paths = list(_folder(root, run_id).iterdir())
    except FileNotFoundError:
        return None
    return _holder(paths[0]) if paths else None


def is_claimed(root: Path, run_id: str) -> bool:
    """Whether somebody who is not gone holds it."""
    holder = holder_of(root, run_id)
    return holder is not None and not holder.is_gone()


def remove_abandoned(root: Path) -> None:
    """Release the claims of holders that are gone."""
    for path in root.glob(".*.claim*"):
        run_id = path.name[1:].split(".")[0]
        if path.name != _folder(root, run_id).name:  # half made
            holder = _holder(path / path.name.split(".claim.", 1)[1])
            if holder.is_gone():
                shutil.rmtree(path, ignore_errors=True)
            continue
        holder_now = holder_of(root, run_id)
        if holder_now is None or holder_now.is_gone():
            with Claims() as claims:
                claims.take(root, run_id)


def _folder(root: Path, run_id: str) -> Path:
    return root / f".{run_id}.claim"


def _own_name(command: str) -> str:
    host = re.sub(r"[^\w.-]", "_", platform.node()) or "unknown"
    process = this_process()
    fields = (process.machine, process.pid, f"{process.started_s:.2f}", f"{time.time():.0f}")
    return "~".join(map(str, (host[:64], *fields, command, uuid.uuid4().hex[:8])))


def _holder(path: Path) -> Holder:
    """What the name of a claim's file says; of another machine if it says nothing."""
    fields = path.name.split("~")
    try:
        if len(fields) != _FIELDS:
            raise ValueError(path.name)
        host, machine, pid, started_s, since_s, command, _ = fields
        process = ProcessName(machine, int(pid), float(started_s))
        return Holder(host, process, float(since_s), command, path)
    except ValueError:
        return Holder("unknown", ProcessName("unknown", 0, 0.0), 0.0, "", path)


def _claim(root: Path, run_id: str, name: str, known_gone: Holder | None) -> bool:
    folder = _folder(root, run_id)
    for _ in range(3):  # it may be released and taken by others between two looks
        if _put(folder, name):
            return True
        holder = holder_of(root, run_id)
        if holder is None:
            continue
        if holder != known_gone and not holder.is_gone():
            return False
        if _take_over(holder, name):
            return True
    return False


def _put(folder: Path, name: str) -> bool:
    """The claim, where there is none."""
    made = folder.with_name(f"{folder.name}.{name}")
    try:
        made.mkdir(parents=True)
        (made / name).touch()
        made.rename(folder)
        return True
    except BaseException as error:  # Ctrl-C too: this process may live on, and be believed
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise


def _take_over(holder: Holder, name: str) -> bool:
    """Put `name` in place of a holder that is gone. False if another was quicker."""
    try:
        os.utime(holder.path)  # before: the new holder must never look silent
        holder.path.rename(holder.path.with_name(name))
        return True
    except FileNotFoundError:
        return False


def _now_s(root: Path) -> float:
    """Of the file system, which its times are told by: machines' clocks differ."""
    with _probe(root) as path:
        return path.stat().st_mtime


@contextlib.contextmanager
def _probe(root: Path) -> Iterator[Path]:
    path = root / f".{uuid.uuid4().hex[:8]}.now"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)

"""Runs the stages one after the other, each in a process of its own, and remembers what is done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.gpu.child import command_line
from experiments.gpu.device import Found
from experiments.gpu.processes import end
from experiments.gpu.rows import read_rows
from experiments.gpu.stages import ROOT, Stage, python_command

STATUS_FILE = "status.json"
LOG_FILE = "log.txt"
_BUDGET_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How a stage ended: complete (every case has an answer, or was cut for time), failed (a case
    or the process), or timed out. reused: it was complete before, for the same key."""

    stage: str
    key: str
    status: str
    wall_s: float
    num_ok: int = 0
    num_failed: int = 0
    num_absent: int = 0
    num_cut: int = 0
    error: str = ""
    dry: bool = False
    reused: bool = False

    @property
    def is_complete(self) -> bool:
        """Nothing failed and nothing is under way; cases may have been cut."""
        return self.status == "complete"

    @property
    def has_all(self) -> bool:
        """Every case has its answer: there is nothing to go on with."""
        return self.is_complete and self.num_cut == 0


def key_of(stage: Stage, found: Found, *, dry: bool) -> str:
    """Address of a stage's rows: code, device, packages and the way it was run."""
    digest = hashlib.sha256()
    for file in stage.files():
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    what = [stage.name, *stage.command, found.name, *found.versions, str(dry)]
    digest.update("\0".join(what).encode())
    return digest.hexdigest()[:16]


def run_stage(
    stage: Stage,
    folder: Path,
    found: Found,
    *,
    dry: bool,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> StageStatus:
    """Do `stage` in `folder` unless it has all rows of its key; the status is on disk as well.

    A stage that was ended, or that cut cases, goes on with those. `again` removes its folder first:
    rows, stored runs, and the rows of parts that have folders of their own.
    """
    key = key_of(stage, found, dry=dry)
    earlier = read_status(folder)
    if earlier and earlier.key == key and earlier.has_all and not again:
        say(f"{stage.name}: complete already")
        return StageStatus(**{**asdict(earlier), "reused": True})
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    limit_s = stage.dry_limit_s if dry else stage.limit_s
    say(f"{stage.name}: {stage.title} (at most {limit_s:.0f} s)")
    begin_s = time.perf_counter()
    arguments = command_line(folder.resolve(), key, _BUDGET_SHARE * limit_s, dry)
    command = [*python_command(stage), *arguments]
    exit_code = _run(command, folder / LOG_FILE, limit_s, _environment(stage, dry), say)
    status = _status(stage, key, folder, exit_code, time.perf_counter() - begin_s, dry)
    _write(status, folder)
    return status


def read_status(folder: Path) -> StageStatus | None:
    """How the stage in `folder` ended last, if it ever did."""
    try:
        return StageStatus(**json.loads((folder / STATUS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _status(
    stage: Stage, key: str, folder: Path, exit_code: int | None, wall_s: float, dry: bool
) -> StageStatus:
    rows = [row for row in read_rows(folder) if row["key"] == key]
    counts = {
        name: sum(row["status"] == name for row in rows)
        for name in ("ok", "failed", "absent", "cut")
    }
    status, error = "complete", ""
    if exit_code is None:
        status, error = "timed out", "ended at its limit; the same command goes on from there"
    elif exit_code != 0 or counts["failed"] or not rows:
        status = "failed"
        failed = next((row for row in rows if row["status"] == "failed"), None)
        error = f"exit status {exit_code}, see {LOG_FILE}"
        if failed is not None:
            error = f"{failed['case']}: {failed.get('error', 'see its row')}"
    numbers = (counts["ok"], counts["failed"], counts["absent"], counts["cut"])
    return StageStatus(stage.name, key, status, round(wall_s, 1), *numbers, error, dry)


def _environment(stage: Stage, dry: bool) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    changed.setdefault("TOKENIZERS_PARALLELISM", "false")
    if dry:
        changed["CUDA_VISIBLE_DEVICES"] = ""
        if stage.interpreted:
            changed["TRITON_INTERPRET"] = "1"  # read when triton is imported
    return changed


def _run(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    environment: dict[str, str],
    say: Callable[[str], None],
) -> int | None:
    """The exit status, or None where the process had to be ended; what it prints is shown and
    kept in `log`."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        ender = _Ender(process, limit_s)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                say(f"  {line.rstrip()}")
            process.wait()
        finally:
            ender.stop()
    return None if ender.had_to else process.returncode


class _Ender:
    """Ends a process and its children when its time is over, or when this one is interrupted."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float) -> None:
        self._process = process
        self.had_to = False
        self._timer = threading.Timer(limit_s, self._over)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()
        if self._process.poll() is None:
            end(self._process)
            self._process.wait()

    def _over(self) -> None:
        self.had_to = True
        end(self._process)


def _write(status: StageStatus, folder: Path) -> None:
    text = json.dumps(asdict(status), indent=1) + "\n"
    partial = folder / f".{STATUS_FILE}"
    partial.write_text(text)
    partial.replace(folder / STATUS_FILE)

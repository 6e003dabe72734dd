"""A study to W&B, in a process that is ended when it takes too long."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from harness.config import TrackingConfig
from harness.runs.study_record import StudyRecord
from harness.tracking.tracker import Tell
from harness.tracking.wandb_records import (
    FOLDER,
    WantedRun,
    declared_mode,
    group_name,
    not_uploaded,
    unwritten,
    wanted_runs,
)

_LOOK_AGAIN_S = 0.2


class Upload(NamedTuple):
    """What the process is told, in a file, pickled: a pipe would block where nobody reads it.

    folder: of the experiment. paths: tables and figures of the study. answer: where the process
    leaves a JSON object, {"mode": "online" | "offline", "error": text}.
    """

    record: StudyRecord
    folder: Path
    paths: tuple[Path, ...]
    config: TrackingConfig
    answer: Path


def upload_study(
    record: StudyRecord, folder: Path, paths: Sequence[Path], config: TrackingConfig, tell: Tell
) -> bool:
    """Log each stored run that W&B does not have yet, and the study's aggregate; whether W&B has
    all of them by then. `tell` gets lines for the reader. Takes at most `config.timeout_s`,
    whatever W&B does, and leaves no process behind.

    folder: of the experiment. paths: tables and figures of the study.
    """
    wanted = wanted_runs(record, folder)
    folder = folder.resolve()
    todo = len(unwritten(wanted, folder, config))
    mode = declared_mode(config)
    if mode == "disabled":
        tell("W&B: WANDB_MODE=disabled, so nothing is logged")
        return True
    if not todo and (mode == "offline" or not not_uploaded(wanted, folder, config)):
        tell(f"W&B: all {len(wanted)} runs of {group_name(record)} are there already")
        return True
    tell(f"W&B: logging {group_name(record)}: {todo} of {len(wanted)} runs to write")
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        told, answer = Path(scratch) / "upload.pickle", Path(scratch) / "answer.json"
        upload = Upload(record, folder, tuple(p.resolve() for p in paths), config, answer)
        told.write_bytes(pickle.dumps(upload))
        ended = _run(told, folder / FOLDER / "log.txt", config.timeout_s)
        said = json.loads(answer.read_text()) if answer.exists() else {}
    line, is_whole = _outcome(upload, wanted, ended, said)
    tell(line)
    return is_whole


def _run(told: Path, log: Path, limit_s: float) -> str:
    """Have it done; why it ended early, or an empty text."""
    deadline = time.monotonic() + limit_s
    seen: set[psutil.Process] = set()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.tracking.wandb_process", str(told)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            while time.monotonic() < deadline:
                seen |= _descendants(process.pid)
                try:
                    code = process.wait(_LOOK_AGAIN_S)
                except subprocess.TimeoutExpired:
                    continue
                return f"it ended with exit code {code}" if code else ""
            return f"it was ended after {limit_s:g} s (tracking.timeout_s)"
        except KeyboardInterrupt:
            return "it was interrupted"
        finally:
            _end(process, seen)


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _end(process: subprocess.Popen[bytes], seen: set[psutil.Process]) -> None:
    """End it and all that it started: W&B's service has a session of its own."""
    seen |= _descendants(process.pid)
    process.kill()
    process.wait()
    for each in seen:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(seen, timeout=5)


def _outcome(
    upload: Upload, wanted: Sequence[WantedRun], ended: str, said: dict[str, str]
) -> tuple[str, bool]:
    """One line: where the runs are, or what is missing and how to have it later; and whether
    nothing is."""
    folder, config = upload.folder, upload.config
    mode = said.get("mode") or declared_mode(config)
    missing = len(unwritten(wanted, folder, config))
    waiting = len(not_uploaded(wanted, folder, config)) if mode != "offline" else 0
    logs = folder / FOLDER
    if not missing and not waiting:
        if mode == "offline":
            return f"W&B: offline, in {logs} (later: wandb sync {logs})", True
        entity = f"{config.entity}/" if config.entity else "project "
        return f"W&B: uploaded to {entity}{config.project}", True
    why = (said.get("error") or ended or "W&B did not take all").rstrip(".")
    again = f"python -m experiments track {folder}@{upload.record.study_id}"
    counts = {"not written": missing, "not uploaded": waiting}
    lacking = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    return (
        f"warning: W&B: of {len(wanted)} runs, {lacking}: {why}. The results are not "
        f"touched by this. Later: {again} (details: {logs / 'log.txt'})"
    ), False

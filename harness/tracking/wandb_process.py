"""python -m harness.tracking.wandb_process FILE: what W&B does, in a process that may be ended.

Runs are written to the disk first, which needs no network, and uploaded from there: what an ended
process leaves is whole runs, and W&B's own `wandb sync` can go on with them.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.tracking.wandb_content import write_aggregate, write_run
from harness.tracking.wandb_login import is_logged_in, why_unreachable
from harness.tracking.wandb_records import (
    FOLDER,
    Mode,
    WantedRun,
    WrittenRun,
    declared_mode,
    not_uploaded,
    remember,
    remove_superseded,
    unwritten,
    wanted_runs,
)
from harness.tracking.wandb_upload import Upload


def main() -> int:
    """Do the `Upload` in the file that is the argument; 1 if anything is left undone."""
    _die_with_parent()
    upload: Upload = pickle.loads(Path(sys.argv[1]).read_bytes())
    mode = declared_mode(upload.config) or ("online" if is_logged_in() else "offline")
    _answer(upload, mode, "")
    for name in ("WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        os.environ.pop(name, None)  # of a W&B run that this one may be within
    # what artifacts are made of waits here for the upload, and not in the home directory
    os.environ.setdefault("WANDB_DATA_DIR", str(upload.folder / FOLDER))
    wanted = wanted_runs(upload.record, upload.folder)
    errors = [_write(run, upload) for run in unwritten(wanted, upload.folder, upload.config)]
    if mode == "online":
        errors.append(_sync(not_uploaded(wanted, upload.folder, upload.config), upload))
    error = next(filter(None, errors), "")
    _answer(upload, mode, error)
    return 1 if error else 0


def _write(run: WantedRun, upload: Upload) -> str:
    """One W&B run to disk; the error that kept it from there, or an empty text."""
    folder, config = upload.folder, upload.config
    try:
        remove_superseded(run.wandb_id, folder, config)
        if run.run is None:
            path = write_aggregate(run, upload.record, folder, upload.paths, config)
        else:
            path = write_run(run.wandb_id, *run.run, upload.record, folder, config)
        remember(WrittenRun(run.wandb_id, run.digest, path, uploaded=False), folder, config)
    except Exception as error:  # the next run may do better, and a benchmark is not at stake
        traceback.print_exc()
        return f"{run.label}: {type(error).__name__}: {error}"
    return ""


def _sync(runs: Sequence[WrittenRun], upload: Upload) -> str:
    """Upload them; the error that kept some from it, or an empty text."""
    if not runs:
        return ""
    if error := why_unreachable():
        return error
    command = [sys.executable, "-m", "wandb", "sync", *(str(run.path) for run in runs)]
    subprocess.run(command, env={**os.environ, "WANDB_MODE": "online"}, check=False)
    done = [run for run in runs if run.is_uploaded]
    for run in done:
        remember(run._replace(uploaded=True), upload.folder, upload.config)
    return "" if len(done) == len(runs) else f"wandb sync took {len(done)} of {len(runs)} runs"


def _answer(upload: Upload, mode: Mode, error: str) -> None:
    said: dict[str, Any] = {"mode": mode, "error": error}
    upload.answer.write_text(json.dumps(said))


def _die_with_parent() -> None:
    """On Linux the kernel ends this process when its parent goes, however it goes; W&B's service
    ends itself when this process is gone."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

"""Commands in folders of their own, with an allocator that notes each run that is really done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import psutil
import pytest

from harness.runs.store import RunStore

ROOT = Path(__file__).parents[2]
LIMIT_S = 120

NOTING = '''
import multiprocessing, time
from pathlib import Path
from allocators.paged import Paged


class Mine(Paged):
    """As paged. Where a file `hold` lies, its runs wait for that to go."""

    name = "mine"

    def allocate(self, *arguments, **keywords):
        if not hasattr(self, "noted") and multiprocessing.parent_process() is not None:
            self.noted = True
            with open("done.txt", "a") as file:
                file.write(f"{self.page_size}\\n")
            while Path("hold").exists():
                time.sleep(0.01)
        return super().allocate(*arguments, **keywords)
'''

SIZES = (1, 2, 4, 8, 16, 32)
SWEEP = (
    "executor=simulated",
    "model=tiny",
    "workload.num_requests=8",
    "allocator=./mine.py:Mine",
    f"kv.page_size={','.join(map(str, SIZES))}",
)
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def start(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    if not (folder / "mine.py").exists():
        (folder / "mine.py").write_text(NOTING)
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        # a suite that itself runs in the background hands down an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition, not for a time."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        time.sleep(0.005)


def done(folder: Path) -> Counter[int]:
    """How often a run of each page size was begun."""
    path = folder / "done.txt"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def stored(folder: Path) -> dict[str, int]:
    """Runs, whatever became of them, and when they were written."""
    store = RunStore(folder / "results" / "single")
    names = [path.parent.name for path in store.root.glob("[0-9a-f]*/status.json")]
    return {name: store.stamp(name) or 0 for name in names}


def statuses(folder: Path) -> dict[int, str]:
    """By page size."""
    rows = pd.read_csv(folder / "results" / "single" / "summary.csv")
    return dict(zip(rows.page_size, rows.status, strict=True))


def logged(folder: Path) -> Counter[str]:
    lines = (folder / "results" / "single" / "runs.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["run_id"] for line in lines)


def hidden(folder: Path) -> list[Path]:
    """Claims and half-written runs."""
    return list((folder / "results" / "single").glob(".*"))


def are_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)

"""What a launched job does, in a process that a launcher has started somewhere."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from harness.config import ConfigError
from harness.measure.environment import capture_environment
from harness.runs.claims import Claims
from harness.runs.host_devices import HostDevices
from harness.runs.job_queue import JobQueue, Stamps
from harness.runs.jobs import Job
from harness.runs.live import LiveBoard
from harness.runs.processes import ProcessName
from harness.runs.store import StoredRun
from harness.runs.sweep import Drain

_LOOK_EVERY_S = 1.0
_TO_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs for the jobs of one launch, which share them out among themselves.

    stamps: see `harness.runs.job_queue`. folder: that the command was given in. variables: of the
    environment that runs are to have, whatever the launcher sets; None for one that is not set.
    command: the process that launched it; ends_with_command: whether its jobs end when it does.
    claims_of: name of the command in claims. tells: whether a job writes a line a run to its log.
    """

    jobs: tuple[Job, ...]
    stamps: Stamps
    folder: Path
    variables: Mapping[str, str | None]
    command: ProcessName
    ends_with_command: bool
    claims_of: str
    tells: bool


def check_private(folder: Path) -> None:
    """Raise ConfigError for a folder that others may write: what is read from it is unpickled, by
    launchers too, which executes what it says."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{folder}: others may write to it, and what lies there is executed: give a "
            "results_dir that is yours alone"
        )


def make_private(folder: Path) -> None:
    """Make sure that `folder` is there, and is nobody else's, whatever the umask."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def write_batch(batch: Batch, path: Path) -> None:
    """For the jobs to read: launchers copy a job's arguments once a job. Raises ConfigError where
    others may write to its folder."""
    make_private(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(pickle.dumps(batch))
    partial.replace(path)


class BatchTask:
    """The function of a job as Hydra's launchers call it. path: of the batch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, config: DictConfig) -> None:
        check_private(self._path.parent)
        batch = pickle.loads(self._path.read_bytes())
        assert isinstance(batch, Batch)
        do_batch(batch)


def do_batch(batch: Batch) -> None:
    """Do runs of a batch, one after the other, until none is left that nobody has."""
    with contextlib.suppress(FileNotFoundError):  # a node that has the results folder alone
        os.chdir(batch.folder)
    for name, value in batch.variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

    # loky, joblib's, sets one of its own, which a worker that is started here does not know
    multiprocessing.set_start_method("spawn", force=True)

    begun: set[str] = set()

    def begin(job: Job, live: LiveBoard) -> None:
        begun.add(job.run_id)

    def tell(job: Job, run: StoredRun | None) -> None:
        if batch.tells and job.run_id in begun:  # others tell of theirs
            outcome = "not stored" if run is None else run.status
            print(f"{job.run_id} {outcome}: {job.label}", flush=True)

    waited: set[str] = set()

    def wait(job: Job) -> None:
        if batch.tells and job.device not in waited:
            waited.add(job.device)
            print(f"waiting for {job.device}: other timed runs have it", flush=True)

    with _ending_early(batch), Claims(batch.claims_of) as claims:
        queue = JobQueue(claims, waits=False)
        queue.add(batch.jobs, batch.stamps)
        environment = capture_environment("none", 1)
        devices = HostDevices()
        drain = Drain(queue, 1, devices, environment, tell, begin, wait, checks_devices=True)
        try:
            drain.run()
        except OSError:  # what cannot be stored: others may have more luck, or say so
            raise
        except Exception:  # submitit's at the time limit: what died over a run is to be seen
            claims.abandon()
            raise


@contextlib.contextmanager
def _ending_early(batch: Batch) -> Iterator[None]:
    """What ends a job before its time, its command's end too where that matters, ends it in good
    order: the worker is stopped and its run released, to be done by others."""
    over = threading.Event()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # elsewhere SIGTERM is the scheduler's affair
        numbers = (signal.SIGINT, signal.SIGTERM) if batch.ends_with_command else (signal.SIGINT,)
        before = {number: signal.signal(number, _interrupt) for number in numbers}
    if batch.ends_with_command and batch.command.is_of_this_machine:
        threading.Thread(target=_watch, args=(batch.command, over), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if batch.ends_with_command:
            os._exit(1)  # nobody waits for an answer, and there is nothing else to do here
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(command: ProcessName, over: threading.Event) -> None:
    while not over.wait(_LOOK_EVERY_S):
        if not command.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_TO_END_S)
            os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # what it leads to is not to be disturbed
        signal.signal(each, _go_on)
    raise KeyboardInterrupt


def _go_on(number: int, frame: FrameType | None) -> None:
    """In place of SIG_IGN, which complains of a signal that came just before it was set."""

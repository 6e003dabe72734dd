"""What a launched job sees, and what it leaves where it is ended."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from harness.config import ConfigError, RunConfig
from harness.launching import job as module
from harness.launching.job import Batch, BatchTask, write_batch
from harness.runs.claims import holder_of
from harness.runs.job_queue import stamps_of
from harness.runs.jobs import Job
from harness.runs.processes import this_process


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.multiprocessing, "set_start_method", lambda *_, **__: None)
    (tmp_path / "command").mkdir()
    jobs = (Job(RunConfig(), "one", "a run", "", tmp_path / "runs", "", device="cpu"),)
    return Batch(
        jobs=jobs,
        stamps=stamps_of(jobs),
        folder=tmp_path / "command",
        variables={"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": None},
        command=this_process(),
        ends_with_command=False,
        claims_of="a-command",
        tells=False,
    )


def do(batch: Batch, monkeypatch: pytest.MonkeyPatch, act) -> None:
    """The job of `batch`, whose runs are `act` on the first of them, which is claimed."""

    class Drain:
        def __init__(self, queue, *_, **__) -> None:
            self._queue = queue

        def run(self) -> None:
            act(self._queue.take())

    monkeypatch.setattr(module, "Drain", Drain)
    path = batch.folder / "round.pickle"
    write_batch(batch, path)
    BatchTask(path)(None)  # type: ignore[arg-type]


def test_a_job_has_the_folder_and_threads_of_its_command(batch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as loky and Ray do
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    seen = []

    def look(job: Job) -> None:
        seen.append((Path.cwd(), os.environ["OMP_NUM_THREADS"], "MKL_NUM_THREADS" in os.environ))

    do(batch, monkeypatch, look)
    assert seen == [(batch.folder, "3", False)]


@pytest.mark.parametrize(
    ("error", "is_left"),
    [(RuntimeError("time is up"), True), (OSError("disk full"), False), (KeyboardInterrupt, False)],
    ids=["time limit", "not stored", "interrupted"],
)
def test_the_run_that_a_job_dies_over_is_seen(batch, monkeypatch, error, is_left):
    def fail(job: Job) -> None:
        assert holder_of(job.root, "one").command == "a-command"
        raise error

    if error is KeyboardInterrupt:
        do(batch, monkeypatch, fail)  # in good order
    else:
        with pytest.raises(type(error)):
            do(batch, monkeypatch, fail)
    assert (holder_of(batch.jobs[0].root, "one") is not None) == is_left


class Planted:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_nothing_is_unpickled_from_a_folder_that_others_may_write(batch, mode):
    path = batch.folder / "launches" / "own" / "round.pickle"
    write_batch(batch, path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_bytes(pickle.dumps(Planted()))
    path.parent.chmod(mode)
    with pytest.raises(ConfigError, match="others may write"):
        BatchTask(path)(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="others may write"):
        write_batch(batch, path)
    assert not Path("executed").exists()

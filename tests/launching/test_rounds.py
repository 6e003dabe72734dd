"""What becomes of runs when a launcher's jobs do not do them; with launchers made for the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.config import ConfigError, RunConfig
from harness.launching import job as job_module
from harness.launching import rounds as module
from harness.launching.job import Batch
from harness.launching.kinds import LauncherKind
from harness.measure.environment import Environment
from harness.runs import claims as claims_module
from harness.runs.claims import Claims
from harness.runs.jobs import Job
from harness.runs.processes import ProcessName, this_process
from harness.runs.store import RunStore, StoredRun
from harness.runs.worker import save_failure

ENVIRONMENT = Environment("cpu", "a CPU", 2, 0.5, 8.0, 1, "3.11", "linux", "default", {}, "none")


class _Chosen:
    """A launcher of `num_jobs` jobs, each of which is `act` on the batch."""

    name = "made"
    label = "hydra/launcher=made"
    settings: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, act: Callable[[Batch, int], None]) -> None:
        self._act = act
        self.launched: list[list[str]] = []

    def plugin(self, task: Callable) -> _Chosen:
        self._task = task
        return self

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[None]:
        path = self._task._path
        batch = job_module.pickle.loads(path.read_bytes())
        self.launched.append([job.run_id for job in batch.jobs])
        for number in range(len(overrides)):
            self._act(batch, number)
        return []


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [
        Job(RunConfig(), name, name, "", tmp_path / "runs", "", device="cpu")
        for name in ("one", "two", "three")
    ]


def test_a_job_that_died_elsewhere_is_known_to_be_gone_where_none_is_left(jobs, tmp_path):
    """Its heart has beaten a moment ago, for all that can be seen here."""

    def act(batch: Batch, number: int) -> None:
        other = ProcessName("another", 1, 0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims_module, "this_process", lambda: other)
            assert Claims(batch.claims_of).take(jobs[0].root, "one")

    chosen, said = launch(jobs[:1], act, tmp_path, settles=True)
    assert chosen.launched == [["one"], ["one"]]
    assert "ended before the run did, 2 times" in said["one"]


def launch(
    jobs: Sequence[Job],
    act: Callable[[Batch, int], None],
    folder: Path,
    more: Sequence[Job] = (),
    settles: bool = False,
    falls_together: bool = False,
) -> tuple[_Chosen, dict[str, str]]:
    """The launcher, and the outcome of each run."""
    chosen = _Chosen(act)
    said: dict[str, str] = {}
    follow = list(more)

    def finished(job: Job, run: StoredRun | None) -> list[Job]:
        assert job.run_id not in said
        said[job.run_id] = "" if run is None else run.error
        return [follow.pop()] if follow else []

    kind = LauncherKind(chosen, folder)  # type: ignore[arg-type]
    kind.settles, kind.falls_together = settles, falls_together
    module.launch_jobs(jobs, ENVIRONMENT, finished, chosen, kind)  # type: ignore[arg-type]
    return chosen, said


def store(job: Job) -> None:
    save_failure(job, "as it went", 0.0, ENVIRONMENT)


def die_over(job: Job, batch: Batch) -> None:
    """A job that has claimed a run and is gone."""
    gone = this_process()._replace(started_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_module, "this_process", lambda: gone)
        assert Claims(batch.claims_of).take(job.root, job.run_id)


@pytest.mark.parametrize(
    ("falls_together", "again"), [(False, [["one", "two"]]), (True, [["one"], ["two"]])]
)
def test_runs_of_jobs_that_die_are_launched_again_and_fail_the_second_time(
    jobs, tmp_path, falls_together, again
):
    deaths: Counter[str] = Counter()

    def act(batch: Batch, number: int) -> None:
        job = batch.jobs[number]
        if job.run_id == "one" or (job.run_id == "two" and not deaths["two"]):
            deaths[job.run_id] += 1
            die_over(job, batch)
        else:
            store(job)

    chosen, said = launch(jobs, act, tmp_path, falls_together=falls_together)
    assert chosen.launched == [["one", "two", "three"], *again]
    assert (said["two"], said["three"]) == ("as it went", "as it went")
    assert "ended before the run did, 2 times" in said["one"]
    assert RunStore(jobs[0].root).find("one").status == "failed"
    assert not list(jobs[0].root.glob(".*"))


def test_a_launch_that_leads_to_nothing_is_an_error_not_a_loop(jobs, tmp_path):
    with pytest.raises(ConfigError, match="hydra/launcher=made: its jobs ended and did no run"):
        launch(jobs, lambda batch, number: None, tmp_path)


def test_what_the_launcher_says_is_passed_on_in_one_line(jobs, tmp_path):
    def act(batch: Batch, number: int) -> None:
        raise RuntimeError("a long story\n\n  of which this is the end\n")

    with pytest.raises(ConfigError) as told:
        launch(jobs, act, tmp_path)
    assert "RuntimeError: of which this is the end; logs: " in str(told.value)
    assert "\n" not in str(told.value)


def test_a_launcher_that_fails_late_has_done_what_it_has_done(jobs, tmp_path):
    def act(batch: Batch, number: int) -> None:
        store(batch.jobs[number])
        if len(batch.jobs) > 1:
            raise RuntimeError("one of its jobs died")

    chosen, said = launch(jobs, act, tmp_path)
    assert chosen.launched == [["one", "two", "three"], ["two", "three"], ["three"]]
    assert set(said.values()) == {"as it went"}


def test_what_follows_from_a_round_is_of_the_next(jobs, tmp_path):
    def act(batch: Batch, number: int) -> None:
        store(batch.jobs[number])

    chosen, said = launch(jobs[:1], act, tmp_path, more=jobs[1:])
    assert chosen.launched == [["one"], ["three"], ["two"]]
    assert set(said) == {"one", "two", "three"}


def test_what_another_command_has_under_way_is_left_to_it(jobs, tmp_path):
    with Claims() as theirs:
        theirs.take(jobs[0].root, "one")

        def act(batch: Batch, number: int) -> None:
            store(batch.jobs[number])
            if batch.jobs[number].run_id == "three":
                store(jobs[0])
                theirs.release(jobs[0].root, "one")

        chosen, said = launch(jobs, act, tmp_path)
    assert chosen.launched == [["two", "three"]]
    assert set(said) == {"one", "two", "three"}


def test_simulated_runs_come_before_timed_ones(jobs, tmp_path):
    simulated = RunConfig(executor=type(RunConfig().executor)(kind="simulated"))
    mixed = [jobs[0], Job(simulated, "four", "four", "", jobs[0].root, "", device="simulated")]

    def act(batch: Batch, number: int) -> None:
        store(batch.jobs[number])

    assert launch(mixed, act, tmp_path)[0].launched == [["four"], ["one"]]

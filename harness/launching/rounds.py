"""A sweep's runs, done by a launcher's jobs: launched, looked after, and launched again if need be.

A round is one launch: of the simulated runs that are left, else of the timed ones, so that these
have their machines to themselves. What follows from a round's results (a search's next probes) is
of the next round.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.config import ConfigError
from harness.launching.chosen import ChosenLauncher
from harness.launching.job import Batch, BatchTask, write_batch
from harness.launching.kinds import LauncherKind
from harness.measure.environment import Environment
from harness.runs.claims import Claims, holder_of, is_claimed
from harness.runs.job_queue import is_done_since, stamps_of
from harness.runs.jobs import Job
from harness.runs.processes import this_process, without_ctrl_c
from harness.runs.store import RunStore
from harness.runs.sweep import LOOK_EVERY_S, OnFinished
from harness.runs.worker import save_failure

MOST_ATTEMPTS = 2
"""Times that a run may be left half done by a job that dies: a machine's fault the first time, most
likely the run's own the second."""

_TO_SEE_IT_S = 2.0
"""A plugin that asks a cluster for the state of its jobs may take longer, and need not see it."""


def launch_jobs(
    jobs: Sequence[Job],
    environment: Environment,
    on_finished: OnFinished,
    chosen: ChosenLauncher,
    kind: LauncherKind,
) -> None:
    """`harness.runs.sweep.run_jobs`, by the chosen launcher. Within
    `harness.compose.hydra_session`.

    A run that fails or kills its process becomes a failed row. One whose job dies is launched
    again, and is a failed row where that happens twice; alone, where the launcher ends all jobs for
    what one did. Raises ConfigError where a launch leads to
    nothing at all. Interrupted, it ends all jobs that it can.
    """
    rounds = _Rounds(environment, on_finished, chosen, kind)
    rounds.add(jobs)
    try:
        rounds.run()
    except BaseException:
        rounds.stop()
        raise
    kind.close()


class _Rounds:
    def __init__(
        self,
        environment: Environment,
        on_finished: OnFinished,
        chosen: ChosenLauncher,
        kind: LauncherKind,
    ) -> None:
        self._environment = environment
        self._on_finished = on_finished
        self._chosen = chosen
        self._kind = kind
        self._left: dict[str, Job] = {}
        self._stamps: dict[str, int | None] = {}
        self._attempts: Counter[str] = Counter()
        self._num_rounds = 0
        # not Thread.join: interrupted by Ctrl-C, it takes a thread that runs on for ended
        self._has_launched = threading.Event()
        self._has_launched.set()
        self._name = uuid.uuid4().hex[:8]

    def add(self, jobs: Sequence[Job]) -> None:
        """In folders that other machines know by the same name."""
        self._stamps |= stamps_of(jobs)
        self._left |= {job.run_id: job for job in jobs}

    def run(self) -> None:
        """Until none is left."""
        while self._left:
            is_simulated = any(not job.is_timed for job in self._left.values())
            batch = [job for job in self._left.values() if job.is_timed != is_simulated]
            free = [job for job in batch if not is_claimed(job.root, job.run_id)]
            if self._count_attempts(free):  # by a job that was silent for long
                continue
            if not free:
                self._look()  # others have all of them under way
                time.sleep(LOOK_EVERY_S)
                continue
            launched = free
            if self._kind.falls_together:  # whose fault it was shows when each is alone
                launched = [job for job in free if not self._attempts[job.run_id]] or free[:1]
            error = self._launch(launched)
            self._look()
            has_begun = self._count_attempts(launched)
            for root in {job.root for job in launched}:
                RunStore(root).remove_partial()  # of jobs that died
            is_waiting = any(is_claimed(job.root, job.run_id) for job in launched)
            is_left = all(job.run_id in self._left for job in launched)
            if is_left and not (has_begun or is_waiting):
                raise ConfigError(self._why_nothing(error))

    def _launch(self, jobs: Sequence[Job]) -> Exception | None:
        """A round: jobs of the launcher until all have ended; what a launch failed of."""
        self._num_rounds += 1
        path = self._kind.folder / f"round_{self._num_rounds}.pickle"
        write_batch(self._batch(jobs), path)
        self._kind.begin()
        plugin = self._chosen.plugin(BatchTask(path.absolute()))
        overrides = [[f"job={number}"] for number in range(self._kind.num_jobs(len(jobs)))]
        failures: list[Exception] = []

        def launch() -> None:
            try:
                with without_ctrl_c():  # nor do the jobs: they are ended in good order
                    plugin.launch(overrides, initial_job_idx=0)
            except Exception as error:  # a job that died; plugins differ in how they say so
                failures.append(error)
                self._kind.settle()
            finally:
                self._has_launched.set()

        # beside this thread, which hears Ctrl-C, tells of finished runs and plans what follows
        self._has_launched.clear()
        threading.Thread(target=launch, daemon=True, name="launching").start()
        try:
            while not self._has_launched.wait(LOOK_EVERY_S):
                self._look()
        finally:
            path.unlink(missing_ok=True)
        return failures[0] if failures else None

    def stop(self) -> None:
        """End every job, and have the plugin see it: joblib clears up after jobs that are gone, and
        does so a second time, with a traceback, where this process ends meanwhile."""
        self._kind.stop()
        self._has_launched.wait(_TO_SEE_IT_S)

    def _batch(self, jobs: Sequence[Job]) -> Batch:
        return Batch(
            jobs=tuple(replace(job, root=job.root.absolute()) for job in jobs),
            stamps={job.run_id: self._stamps[job.run_id] for job in jobs},
            folder=Path.cwd(),
            variables=self._kind.variables(),
            command=this_process(),
            ends_with_command=self._kind.ends_with_command,
            claims_of=self._name,
            tells=self._kind.tells,
        )

    def _look(self) -> None:
        """Tell of runs that are stored by now."""
        for job in [job for job in self._left.values() if is_done_since(job, self._stamps)]:
            del self._left[job.run_id]
            self.add(self._on_finished(job, RunStore(job.root).find(job.run_id)) or ())

    def _count_attempts(self, jobs: Sequence[Job]) -> bool:
        """Whether a job has died over one of `jobs`; what has seen that too often fails."""
        has_begun = False
        with Claims() as claims:
            for job in [job for job in jobs if job.run_id in self._left]:
                holder = holder_of(job.root, job.run_id)
                if holder is None or holder.command != self._name:
                    continue
                # where no job of the launch is left, one died over what it still holds
                known_gone = holder if self._kind.settles else None
                if not claims.take(job.root, job.run_id, known_gone):
                    continue
                has_begun = True
                self._attempts[job.run_id] += 1
                if self._attempts[job.run_id] >= MOST_ATTEMPTS:
                    error = (
                        f"its job on {holder.host} ended before the run did, "
                        f"{MOST_ATTEMPTS} times; logs: {self._kind.where()}"
                    )
                    save_failure(job, error, 0.0, self._environment)
                claims.release(job.root, job.run_id)
        self._look()
        return has_begun

    def _why_nothing(self, error: Exception | None) -> str:
        label, logs = self._chosen.label, f"logs: {self._kind.where()}"
        if error is None:
            return f"{label}: its jobs ended and did no run; {logs}"
        return f"{label}: {self._kind.why(error)}"

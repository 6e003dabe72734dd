"""What each launcher needs that Hydra's interface says nothing of: how many jobs it runs at one
time, whether one of a failed launch is still there, and how all of them are ended."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from harness.config import ConfigError
from harness.launching.chosen import ChosenLauncher
from harness.runs.estimate import usable_cores

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_TO_END_S = 10.0


class LauncherKind:
    """A launcher that nothing more is known of: a job for each run, on machines that are not this
    one. is_here: whether they are on this one, with the devices that this process finds.
    ends_with_command: whether they end when the command does, however that ends. tells: whether
    one writes a line a run to its own log. settles: whether no job of a launch is left once
    `settle` returns, wherever it was. falls_together: whether all jobs are ended where one dies."""

    is_here = False
    ends_with_command = False
    tells = True
    settles = False
    falls_together = False

    def __init__(self, chosen: ChosenLauncher, folder: Path) -> None:
        self.settings: dict[str, Any] = chosen.settings
        self.folder = folder
        self._others = _children()

    def begin(self) -> None:
        """Before a launch, in the main thread."""

    def num_jobs(self, num_runs: int) -> int:
        """Jobs that are worth starting for so many runs: all those that run at one time."""
        return num_runs

    def variables(self) -> dict[str, str | None]:
        """Those of this process that its jobs' runs are to have: launchers bound the threads of
        their workers, and a run's figures depend on them."""
        return {name: os.environ.get(name) for name in _THREAD_VARIABLES}

    def where(self) -> str:
        """Logs of jobs, for the reader."""
        return str(self.folder)

    def why(self, error: Exception) -> str:
        """What a launch failed of, in one line, with where more is said."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip("- \n")]
        said = f"{type(error).__name__}: {lines[-1] if lines else ''}"
        return f"{said}; logs: {self.where()}"

    def settle(self) -> None:
        """Wait until no job of a launch that failed is left."""

    def stop(self) -> None:
        """End every job: the command was interrupted."""
        self._end_children()

    def close(self) -> None:
        """No launch follows."""

    def _end_children(self) -> None:
        """Processes below this one that were not there before, first asked, then made to."""
        _end(process for process in _children() - self._others if not _keeps_order(process))


class Joblib(LauncherKind):
    ends_with_command = True
    tells = False
    is_here = True
    falls_together = True

    def __init__(self, chosen: ChosenLauncher, folder: Path) -> None:
        import joblib

        super().__init__(chosen, folder)
        given = self.settings["n_jobs"]
        try:
            self._num_workers = int(joblib.effective_n_jobs(given))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"hydra.launcher.n_jobs={given}: must be 1 or more, or -1 for all cores"
            ) from error

    def num_jobs(self, num_runs: int) -> int:
        return min(num_runs, self._num_workers)

    def where(self) -> str:
        return "this terminal"

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


class SubmititLocal(LauncherKind):
    """It starts all jobs at once, so there are no more than the machine has cores."""

    ends_with_command = True
    is_here = True

    def num_jobs(self, num_runs: int) -> int:
        return min(num_runs, usable_cores())

    def variables(self) -> dict[str, str | None]:
        # submitit hides the GPUs from jobs that it is told no number for
        hidden = [] if self.settings.get("gpus_per_node") else ["CUDA_VISIBLE_DEVICES"]
        return {**super().variables(), **{name: os.environ.get(name) for name in hidden}}

    def settle(self) -> None:
        psutil.wait_procs(_children() - self._others)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # submitit makes it, its %j not replaced
            Path(self.settings["submitit_folder"]).rmdir()


class SubmititSlurm(LauncherKind):
    settles = True

    def __init__(self, chosen: ChosenLauncher, folder: Path) -> None:
        super().__init__(chosen, folder)
        self._begun_s = time.time()

    def num_jobs(self, num_runs: int) -> int:
        return min(num_runs, int(self.settings["array_parallelism"]))

    def where(self) -> str:
        return str(self.settings["submitit_folder"])

    def settle(self) -> None:
        from submitit import SlurmJob

        for job_id in self._job_ids():
            SlurmJob(folder=self.settings["submitit_folder"], job_id=job_id).wait()

    def stop(self) -> None:
        """Jobs that run are interrupted and release their runs; those that wait are cancelled."""
        jobs = sorted({job_id.split("_")[0] for job_id in self._job_ids()})
        for options in (["--signal=INT"], ["--state=PENDING"], []):
            if jobs:
                with contextlib.suppress(OSError):
                    subprocess.run(["scancel", *options, *jobs], capture_output=True, check=False)
        super().stop()

    def _job_ids(self) -> list[str]:
        """Those that were submitted since this began: submitit makes a folder for each."""
        from submitit.core.utils import JobPaths

        base = JobPaths.get_first_id_independent_folder(self.settings["submitit_folder"])
        if not base.is_dir():
            return []
        pattern = re.compile(r"\d+(_\d+)?")
        return [
            path.name
            for path in base.iterdir()
            if pattern.fullmatch(path.name) and path.stat().st_mtime >= self._begun_s - 1
        ]


class Ray(LauncherKind):
    """A cluster of its own on this machine, unless it is told of one."""

    ends_with_command = True
    tells = False
    settles = True

    def __init__(self, chosen: ChosenLauncher, folder: Path) -> None:
        super().__init__(chosen, folder)
        address = self.settings["ray"]["init"].get("address") or os.environ.get("RAY_ADDRESS")
        self.is_here = address in (None, "local")

    def begin(self) -> None:
        """Start Ray, or join it. The plugin would do so too, but not with an address: it gives
        limits beside it that only a cluster of its own can have."""
        import ray

        settings = dict(self.settings["ray"]["init"])
        if self.is_here:
            settings = {"include_dashboard": False, **settings}
        if not ray.is_initialized():
            ray.init(**settings)

    def num_jobs(self, num_runs: int) -> int:
        import ray

        total, remote = ray.cluster_resources(), self.settings["ray"]["remote"]
        wanted = {"CPU": remote.get("num_cpus", 1), "GPU": remote.get("num_gpus", 0)}
        fits = [int(total.get(name, 0) / n) for name, n in wanted.items() if n]
        return max(1, min(num_runs, *fits)) if fits else num_runs

    def where(self) -> str:
        return "this terminal, and Ray's session folder on each node (/tmp/ray/session_latest/logs)"

    def settle(self) -> None:
        self.close()  # which ends all tasks of this process; the next launch joins again

    def stop(self) -> None:
        self.close()
        super().stop()

    def close(self) -> None:
        import ray

        ray.shutdown()


KINDS: dict[str, type[LauncherKind]] = {
    "joblib": Joblib,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
    "ray": Ray,
}


def kind_of(chosen: ChosenLauncher, folder: Path) -> LauncherKind:
    """folder: of the jobs' files."""
    return KINDS.get(chosen.name, LauncherKind)(chosen, folder)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _keeps_order(process: psutil.Process) -> bool:
    """Whether a process is one that cleans up after this one, and ends with it by itself."""
    try:
        return any("resource_tracker" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _end(processes: Iterable[psutil.Process]) -> None:
    left = list(processes)
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)
        _, left = psutil.wait_procs(left, timeout=_TO_END_S)

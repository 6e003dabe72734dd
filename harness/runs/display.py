"""What a person sees while a sweep runs."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.runs.jobs import Job
from harness.runs.store import StoredRun


class SweepDisplay:
    """A progress bar with time left, and a line for each finished run.

    Not on a terminal there is no bar, just the lines. searching: more runs may follow from these.
    """

    def __init__(self, console: Console, num_jobs: int, searching: bool = False) -> None:
        self._num_jobs = num_jobs
        self._more = "+" if searching else ""
        self._num_done = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        task = "searching" if searching else "runs"
        self._task = self._progress.add_task(task, total=num_jobs)

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def add(self, num_jobs: int) -> None:
        """So many runs more are to be done."""
        self._num_jobs += num_jobs
        self._progress.update(self._task, total=self._num_jobs)

    def finished(self, job: Job, run: StoredRun | None) -> None:
        """One more run is stored."""
        self._num_done += 1
        width = len(str(self._num_jobs))
        count = f"{self._num_done:>{width}}/{self._num_jobs}{self._more}"
        head = f"[{count}] {job.label:<58}"
        self._progress.console.print(f"{head} {_outcome(run)}", highlight=False, markup=False)
        self._progress.advance(self._task)


def _outcome(run: StoredRun | None) -> str:
    if run is None:
        return "not stored"
    if run.status != "complete":
        return f"FAILED: {run.error}"
    rows = run.summary
    utilisation = sum(row["utilisation"] for row in rows) / len(rows)
    saturated = sum(row["saturated_share"] for row in rows) / len(rows)
    text = f"KV used {utilisation:6.1%}  memory-bound {saturated:4.0%}"
    if run.config["executor"]["kind"] != "simulated":
        rate = sum(row["output_tokens_per_s"] for row in rows) / len(rows)
        text += f"  {rate:7.1f} tok/s"
    return f"{text}  {run.wall_s:5.1f} s"

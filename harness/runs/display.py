"""What a person sees while runs are done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.runs.claims import holder_of
from harness.runs.estimate import Forecast, forecast_from, overhead_s
from harness.runs.jobs import Job
from harness.runs.live import LiveBoard
from harness.runs.processes import ProcessName
from harness.runs.store import StoredRun

REFRESHES_PER_S = 2
"""A display that is drawn more often takes time from the runs that it is about."""

COUNTS_EVERY_S = 60.0
"""How often at most counts are said where runs have no lines."""

_MOST_SHOWN = 4
_BAR_WIDTH = 24


class SweepDisplay:
    """A line for each finished run, with the time that is left; on a terminal below them how many
    are done, failed and left, and the runs under way.

    pending: the runs to be done. planned: with those that are stored already, which tell how long
    others will take. searching: more runs may follow from these. lists_runs: whether finished runs
    have lines at all; where they have none, and not on a terminal, counts are said now and then.
    """

    def __init__(
        self,
        console: Console,
        pending: Sequence[Job],
        planned: Sequence[Job] = (),
        *,
        searching: bool = False,
        lists_runs: bool = True,
    ) -> None:
        self._console = console
        self._left = {job.run_id: job for job in pending}
        self._num_jobs = len(pending)
        self._num_before = len({job.run_id for job in planned} - self._left.keys())
        self._forecast: Forecast = forecast_from(planned)
        self._kinds_begun: set[bool] = set()
        self._searching = searching
        self._lists_runs = lists_runs
        self._num_done = 0
        self._has_waited = False
        self._waited_for: set[tuple[str, ProcessName]] = set()
        self.num_failed = 0
        self._boards: dict[str, LiveBoard] = {}
        self._begin_s = self._counted_s = time.monotonic()
        self._live = Live(
            self,
            console=console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )

    @property
    def num_stored(self) -> int:
        """Runs that are complete, those before this command too."""
        return self._num_before + self._num_done - self.num_failed

    @property
    def num_left(self) -> int:
        """Runs that are not: still to be done, or failed and tried again by the next command."""
        return len(self._left) + self.num_failed

    def __enter__(self) -> SweepDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def add(self, jobs: Sequence[Job]) -> None:
        """These runs are to be done as well."""
        self._left |= {job.run_id: job for job in jobs}
        self._num_jobs += len(jobs)

    def started(self, job: Job, board: LiveBoard) -> None:
        """A run is under way; `board` shows how far it is."""
        self._boards[job.run_id] = board
        self._kinds_begun.add(job.is_timed)

    def waiting(self, job: Job) -> None:
        """A run cannot start: another command has it under way, which is said once a process, or
        what it is timed on, which is said once."""
        holder = holder_of(job.root, job.run_id)
        if holder is not None:
            if (holder.host, holder.process) not in self._waited_for:
                self._waited_for.add((holder.host, holder.process))
                self._console.print(
                    f"waiting for {job.label}: under way in {holder.in_words()}",
                    highlight=False,
                    markup=False,
                )
        elif not self._has_waited:
            self._has_waited = True
            self._console.print(
                f"waiting for {job.device}: another command's timed runs have it",
                highlight=False,
                markup=False,
            )

    def finished(self, job: Job, run: StoredRun | None) -> None:
        """One more run is stored."""
        self._boards.pop(job.run_id, None)
        self._kinds_begun.add(job.is_timed)
        self._left.pop(job.run_id, None)
        self._num_done += 1
        if run is None or run.status != "complete":
            self.num_failed += 1
        else:
            self._forecast.learn(job, run.wall_s)
        if self._lists_runs:
            width = len(str(self._num_jobs))
            more = "+" if self._searching else ""
            count = f"{self._num_done:>{width}}/{self._num_jobs}{more}"
            label = f"{job.label} · again" if job.is_redo else job.label
            head = f"[{count}] {label:<58}"
            left = f"  about {duration(self._left_s())} left" if self._left else ""
            self._console.print(f"{head} {_outcome(run)}{left}", highlight=False, markup=False)
        elif not self._console.is_terminal and self._left:
            self._say_counts()

    def _say_counts(self) -> None:
        now_s = time.monotonic()
        if now_s - self._counted_s >= COUNTS_EVERY_S:
            self._counted_s = now_s
            self._console.print(self._counts(), highlight=False, markup=False)

    def _counts(self) -> str:
        """All of it in one line."""
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        at_least = "at least " if self._searching else ""
        left = f"{self._num_done} done{failed}, {at_least}{len(self._left)} left"
        if self._left:
            left += f", about {duration(self._left_s())}"
        return left

    def _left_s(self) -> float:
        shares = {}
        for run_id, board in list(self._boards.items()):
            if (figures := board.read()) is not None:
                shares[run_id] = figures.share_done
        left = list(self._left.values())
        starts = {job.is_timed for job in left} - self._kinds_begun
        return self._forecast.left_s(left, shares) + overhead_s(starts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What stands below the lines."""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            "searching" if self._searching else "runs",
            ProgressBar(total=max(1, self._num_jobs), completed=self._num_done, width=_BAR_WIDTH),
            Text(f"{self._counts()} · {duration(time.monotonic() - self._begin_s)} so far"),
        )
        yield grid
        yield from self._under_way()

    def _under_way(self) -> Iterator[RenderableType]:
        boards = list(self._boards.items())
        for run_id, board in boards[:_MOST_SHOWN]:
            if (job := self._left.get(run_id)) is not None:
                yield Text(
                    f"  {job.label}: {_so_far(job, board)}", no_wrap=True, overflow="ellipsis"
                )
        if len(boards) > _MOST_SHOWN:
            yield Text(f"  and {len(boards) - _MOST_SHOWN} more")


def duration(seconds: float) -> str:
    """Rounded, in seconds below 100, else in minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _so_far(job: Job, board: LiveBoard) -> str:
    figures = board.read()
    if figures is None:
        return "starting"
    words = [f"{figures.share_done:.0%}"]
    if job.is_timed:
        words.append(f"{figures.output_tokens_per_s:,.1f} tok/s")
    words.append(f"waste {figures.unused_share:.0%} so far")
    return " · ".join(words)


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

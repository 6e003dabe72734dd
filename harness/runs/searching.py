"""A search within one cell of a sweep: its probes are runs like any other, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter

from harness.config import ConfigError, RunConfig, SearchConfig
from harness.measure.backlog import majority_sustains
from harness.runs.bisection import Probe, Search, next_value
from harness.runs.jobs import Job
from harness.runs.store import RunStore
from harness.runs.varied_settings import short_name

MakeJobs = Callable[[float], Sequence[Job]]
"""The runs (one, or one a repetition) that try a value of the searched key."""


class CellSearch:
    """jobs: of all probes so far, the stored ones too.

    suffix: what tells its cell from others, appended to the labels of its jobs.
    """

    def __init__(self, search: Search, make_jobs: MakeJobs, suffix: str = "") -> None:
        self.search = search
        self.suffix = suffix
        self.jobs: list[Job] = []
        self._make_jobs = make_jobs
        self._probes: list[Probe] = []
        self._trying: tuple[float, Sequence[Job]] | None = None

    def waits_for(self, run_id: str) -> bool:
        """Whether the probe it is at needs this run."""
        return self._trying is not None and any(j.run_id == run_id for j in self._trying[1])

    def advance(self) -> Sequence[Job]:
        """The jobs of the next probe that the store lacks, as soon as the one before is there;
        none while that is awaited, and when the search is over. A probe whose run failed ends it.
        """
        while True:
            begun = self._trying is None and self._begin()
            if self._trying is None:
                return ()
            value, jobs = self._trying
            runs = [RunStore(job.root).find(job.run_id) for job in jobs]
            missing = [
                job
                for job, run in zip(jobs, runs, strict=True)
                if run is None or run.status != "complete"
            ]
            if missing:
                return missing if begun else ()
            rows = [row for run in runs if run is not None for row in run.summary]
            sustained = majority_sustains(rows, self.search.normalised_latency_ms)
            self._probes.append(Probe(value, sustained))
            self._trying = None

    def _begin(self) -> bool:
        value = next_value(self.search, self._probes)
        if value is None:
            return False
        name = short_name(self.search.key)
        jobs = [
            replace(job, label=f"{job.label}{self.suffix} · {name} {value:g}", search=self.search)
            for job in self._make_jobs(value)
        ]
        self.jobs += jobs
        self._trying = value, jobs
        return True


def search_of(config: SearchConfig, run: RunConfig) -> Search:
    """The search of a part, in the cell that `run` is of. Raises ConfigError where it has no
    bound, or its key takes whole numbers alone."""
    bound = config.normalised_latency_ms or run.measure.slo_normalised_ms
    if bound is None:
        raise ConfigError(
            "a search needs a bound to call a rate sustained: give measure.slo_normalised_ms, or "
            "search.normalised_latency_ms in the experiment"
        )
    value = attrgetter(config.key)(run)
    if not isinstance(value, float):
        raise ConfigError(
            f"search.key={config.key}: bisection needs a key that takes fractions, as "
            "workload.rate does; give this one a list of values instead"
        )
    return Search(config.key, config.low, config.high, config.tolerance, bound)

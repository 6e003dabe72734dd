"""Two studies compared: all that `python -m experiments compare` says, before it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from experiments.comparison.counts import CellCounts, count
from experiments.comparison.matching import Cell, Matching, match
from experiments.comparison.metrics import chosen
from experiments.comparison.pairs import Finding, findings, pairs_of
from experiments.comparison.surroundings import Surroundings, surroundings
from experiments.stored import StoredStudy
from harness.runs.jobs import Job

NO_DIFFERENCE, WORSE, CANNOT_TELL = 0, 1, 3
"""Exit statuses; 2 is a wrong command line."""


class Side(NamedTuple):
    """A study as it was named on the command line."""

    name: str
    study: StoredStudy


class Outcome(NamedTuple):
    """Runs of one cell and seed that ended well in one study alone."""

    cell: str
    seed: int
    status_before: str
    status_after: str
    error: str

    @property
    def is_worse(self) -> bool:
        return self.status_before == "complete"


class Unpaired(NamedTuple):
    """Seeds of one cell that one study alone has. is_lacking: the first one, so B lacks them."""

    cell: str
    seeds: tuple[int, ...]
    is_lacking: bool


class Comparison(NamedTuple):
    """threshold: relative difference that a metric must exceed to count. is_timed: figures are wall
    times. is_noisy: and not of one command, which would have interleaved them. same_addresses: of
    all runs, so neither config nor code nor device differs. other_requests: cells whose runs of a
    seed did not serve the same requests."""

    before: Side
    after: Side
    matching: Matching
    surroundings: Surroundings
    findings: tuple[Finding, ...]
    counts: tuple[CellCounts, ...]
    outcomes: tuple[Outcome, ...]
    unpaired: tuple[Unpaired, ...]
    threshold: float
    is_timed: bool
    is_noisy: bool
    same_addresses: bool
    other_requests: tuple[str, ...]

    def counts_against(self, each: Finding) -> bool:
        """Whether a metric is worse by more than the threshold."""
        return each.verdict == "worse" and abs(each.change.mean) > self.threshold

    @property
    def has_steps(self) -> bool:
        """Neither side is an export, so that counts are compared."""
        return _have_steps(self.before, self.after)

    @property
    def worse(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if self.counts_against(each))

    @property
    def better(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.verdict == "better")

    @property
    def are_counts_equal(self) -> bool:
        return all(each.is_equal for each in self.counts)

    def exit_status(self, *, exact: bool) -> int:
        """See the constants of this module. exact: counts that differ are worse, too."""
        if self.worse or any(each.is_worse for each in self.outcomes):
            return WORSE
        if exact and (not self.are_counts_equal or not self._is_whole()):
            return WORSE
        if self.lacking:
            return CANNOT_TELL
        if self.is_blind and not self.better:
            return CANNOT_TELL
        verdicts = {each.verdict for each in self.findings} - {"equal"}
        is_told = bool(self.findings) and verdicts != {"too few runs to tell"}
        return NO_DIFFERENCE if is_told else CANNOT_TELL

    @property
    def too_noisy(self) -> tuple[str, ...]:
        """Metrics of which a doubling could not be seen: their noise is above 100 %."""
        return tuple(dict.fromkeys(e.metric.column.title for e in self.findings if e.noise > 1))

    @property
    def is_blind(self) -> bool:
        """All times and rates are too noisy."""
        noises = [each.noise for each in self.findings if each.metric.clock == "time"]
        return bool(noises) and min(noises) > 1

    @property
    def lacking(self) -> tuple[str, ...]:
        """Cells and seeds of the first study that the second lacks, in words."""
        seeds = (f"{seeds_in_words(e.seeds)} of {e.cell}" for e in self.unpaired if e.is_lacking)
        return (*self.matching.only_before, *seeds)

    def _is_whole(self) -> bool:
        matching = self.matching
        return not (matching.only_before or matching.only_after or self.unpaired)


def compare(
    before: Side, after: Side, *, metrics: Sequence[str] = (), threshold: float = 0.0
) -> Comparison:
    """Compare the second study with the first. metrics: names, or the headline ones. Counts are
    left out where either is an export, which has no steps.

    Raises ConfigError for a name that is no metric.
    """
    matching = match(before.study.jobs, after.study.jobs)
    rows = [
        (_rows(cell.before, before.study), _rows(cell.after, after.study))
        for cell in matching.cells
    ]
    complete = [(_complete(left), _complete(right)) for left, right in rows]
    by_name = {cell.name: sides for cell, sides in zip(matching.cells, complete, strict=True)}
    is_timed = any(job.is_timed for job in (*before.study.jobs, *after.study.jobs))
    is_noisy = is_timed and not _take_turns(before.study, after.study)
    has_slo = any(_has_slo(job) for job in (*before.study.jobs, *after.study.jobs))
    all_rows = [before.study.rows, after.study.rows]
    family = pairs_of(by_name, chosen(metrics, all_rows, has_slo=has_slo))
    ids = [{job.run_id for job in side.study.jobs} for side in (before, after)]
    return Comparison(
        before,
        after,
        matching,
        surroundings(before.study.jobs, after.study.jobs),
        tuple(findings(family, is_noisy=is_noisy, is_simulated=not is_timed)),
        tuple(count(cell, *sides) for cell, sides in zip(matching.cells, complete, strict=True))
        if _have_steps(before, after)
        else (),
        tuple(_outcomes(matching.cells, rows)),
        tuple(_unpaired(matching.cells, rows)),
        threshold,
        is_timed,
        is_noisy,
        ids[0] == ids[1],
        tuple(name for name, sides in by_name.items() if _serve_others(*sides)),
    )


def seeds_in_words(seeds: Sequence[int]) -> str:
    """`seed 3`, `seeds 3, 4`."""
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _have_steps(before: Side, after: Side) -> bool:
    return not (before.study.is_exported or after.study.is_exported)


def _rows(jobs: Sequence[Job], study: StoredStudy) -> pd.DataFrame:
    ids = {job.run_id for job in jobs}
    return study.rows[study.rows["run_id"].isin(ids)]


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "complete"]


def _has_slo(job: Job) -> bool:
    measure = job.config.measure
    bounds = (measure.slo_ttft_ms, measure.slo_tpot_ms, measure.slo_normalised_ms)
    return any(bound is not None for bound in bounds)


def _take_turns(before: StoredStudy, after: StoredStudy) -> bool:
    """Runs of one command: its timed repetitions take turns over all cells."""
    return (before.folder.resolve(), before.record.study_id) == (
        after.folder.resolve(),
        after.record.study_id,
    )


def _outcomes(
    cells: Sequence[Cell], rows: Sequence[tuple[pd.DataFrame, pd.DataFrame]]
) -> list[Outcome]:
    found = []
    for cell, sides in zip(cells, rows, strict=True):
        left, right = (_status_by_seed(each) for each in sides)
        for seed in sorted(left.keys() & right.keys()):
            (one, _), (other, error) = left[seed], right[seed]
            if (one == "complete") != (other == "complete"):
                found.append(Outcome(cell.name, seed, one, other, error or left[seed][1]))
    return found


def _unpaired(
    cells: Sequence[Cell], rows: Sequence[tuple[pd.DataFrame, pd.DataFrame]]
) -> Iterator[Unpaired]:
    for cell, sides in zip(cells, rows, strict=True):
        left, right = ({int(seed) for seed in each["seed"]} for each in sides)
        for seeds, is_lacking in ((left - right, True), (right - left, False)):
            if seeds:
                yield Unpaired(cell.name, tuple(sorted(seeds)), is_lacking)


def _serve_others(before: pd.DataFrame, after: pd.DataFrame) -> bool:
    """Runs of the same seed had other requests; those stored without a digest are left out."""
    if "requests_digest" not in before or "requests_digest" not in after:
        return False
    pairs = before[["seed", "requests_digest"]].merge(after[["seed", "requests_digest"]], on="seed")
    known = pairs.dropna()
    return bool((known["requests_digest_x"] != known["requests_digest_y"]).any())


def _status_by_seed(rows: pd.DataFrame) -> dict[int, tuple[str, str]]:
    """Status and error."""
    return {
        int(row["seed"]): (str(row["status"]), "" if row["status"] == "complete" else row["error"])
        for _, row in rows.iterrows()
    }

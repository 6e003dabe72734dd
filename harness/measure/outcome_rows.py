"""An outcome log and what was decided under it, as rows of a table and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from harness.engine.outcome_log import LoggedArrival, OutcomeLog, Told
from harness.engine.plan import StepOutcome
from harness.engine.scheduling.beam_search import Candidates


class OutcomeRow(NamedTuple):
    """One thing that a run was told. digest: of what was decided for a step, empty where requests
    arrived; duration_s likewise NaN. Lists of beams stand one after the other."""

    digest: str
    duration_s: float
    request_ids: list[int]
    scheduled_s: list[float]
    token_ids: list[int]
    num_accepted: list[int]
    num_candidates: list[int]
    candidate_ids: list[int]
    candidate_log_probs: list[float]


def to_rows(log: OutcomeLog, digests: Iterable[str]) -> pd.DataFrame:
    """A row for each entry of `log`. digests: of its steps."""
    of_steps = iter(digests)
    rows = [
        _step_row(told, next(of_steps)) if isinstance(told, StepOutcome) else _arrival_row(told)
        for told in log.told
    ]
    return pd.DataFrame(rows, columns=list(OutcomeRow._fields))


def from_rows(frame: pd.DataFrame) -> tuple[OutcomeLog, list[str]]:
    """The inverse of `to_rows`; margins of tokens are not kept."""
    told: list[Told] = []
    digests: list[str] = []
    row: Any
    for row in frame.itertuples(index=False):
        if row.digest:
            digests.append(str(row.digest))
            told.append(_step(row))
        else:
            ids, times = list(map(int, row.request_ids)), list(map(float, row.scheduled_s))
            told.append(tuple(map(LoggedArrival, ids, times)))
    return OutcomeLog(told), digests


def _arrival_row(arrived: Sequence[LoggedArrival]) -> OutcomeRow:
    ids, times = [a.request_id for a in arrived], [a.scheduled_s for a in arrived]
    return OutcomeRow("", float("nan"), ids, times, [], [], [], [], [])


def _step_row(told: StepOutcome, digest: str) -> OutcomeRow:
    return OutcomeRow(
        digest,
        told.duration_s,
        [],
        [],
        [int(token) for token in told.token_ids],
        [int(count) for count in told.num_accepted],
        [len(candidates.token_ids) for candidates in told.candidates],
        [int(token) for candidates in told.candidates for token in candidates.token_ids],
        [float(value) for candidates in told.candidates for value in candidates.log_probs],
    )


def _step(row: Any) -> StepOutcome:
    ids, log_probs = list(map(int, row.candidate_ids)), list(map(float, row.candidate_log_probs))
    candidates, begin = [], 0
    for count in map(int, row.num_candidates):
        end = begin + count
        candidates.append(Candidates(ids[begin:end], log_probs[begin:end]))
        begin = end
    return StepOutcome(
        list(map(int, row.token_ids)),
        (),
        float(row.duration_s),
        candidates,
        list(map(int, row.num_accepted)),
    )

"""Fairness check: every allocator must have led the model to the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.exported import is_exported
from harness.conversion import to_mapping
from harness.engine.device.model_shape import DTYPE_BYTES
from harness.runs.jobs import Job, strategy_label
from harness.runs.store import RunStore, StoredRun

MARGIN_LIMIT = 1e-3
"""A different choice at a logit margin above this is no rounding: memory was mixed up."""

MARGIN_LIMIT_16_BIT = 0.5
"""The same where the model or its KV has 16 bits. Logits of bfloat16 are rounded to 2**-4 between
8 and 16; a wrong page moves them by several units."""

MISSING_ID = -1
"""In place of a token that a run lacks."""

_COLUMNS = ("repetition", "request_id", "status", "sequence_lens", "chosen_ids", "margins")


class TokenDifference(NamedTuple):
    """Where two runs of the same requests chose differently.

    output: which of the request's (samples, beams best first). position: in the output. margin:
    the larger one of the two runs' gaps between the best and the second logit; of a token that
    was drawn, how far these gaps are apart; NaN where there is none (beams, a missing token).
    """

    repetition: int
    request_id: int
    output: int
    position: int
    expected_id: int
    chosen_id: int
    margin: float

    def is_rounding(self, limit: float) -> bool:
        """Whether a margin is known, and at most `limit`."""
        return self.margin <= limit


class EqualityReport(NamedTuple):
    """strategies, settings (strategies x page sizes x ranks): how many were compared. positions:
    output positions of one run of each request.

    near_ties: differences within rounding, those of several runs at one position once.
    failures: one line for each pair of runs that differ by more. not_compared: one line for each
    reason. is_16_bit: whether the wider limit applied to some.
    """

    strategies: int
    settings: int
    positions: int
    near_ties: tuple[TokenDifference, ...]
    failures: tuple[str, ...]
    not_compared: tuple[str, ...]
    is_16_bit: bool


class _Group(NamedTuple):
    """Runs of the same requests in the same precision, with their finished requests. forced:
    outputs were given, so that every position has the same past. drawn: tokens were sampled."""

    runs: list[tuple[Job, pd.DataFrame]]
    forced: bool
    drawn: bool
    limit: float


def compare_tokens(
    expected: pd.DataFrame, found: pd.DataFrame, *, forced: bool, drawn: bool = False
) -> list[TokenDifference]:
    """The differences of two runs' requests, in order.

    forced: outputs were forced, so that every position is compared; otherwise what follows an
    output's first difference has another past and says nothing. drawn: tokens were sampled, so
    that a logit's rounding moves a token at any margin. Requests that only one of the runs
    finished are left out.
    """
    pair = _finished(expected).join(_finished(found).add_suffix("_found"), how="inner")
    found_differences = []
    for (repetition, request_id), row in zip(pair.index, pair.itertuples(index=False), strict=True):
        ours = _outputs(row.sequence_lens, row.chosen_ids, row.margins)
        theirs = _outputs(row.sequence_lens_found, row.chosen_ids_found, row.margins_found)
        empty = _Output(np.empty(0, np.int64), np.empty(0))
        for number, (one, other) in enumerate(zip_longest(ours, theirs, fillvalue=empty)):
            differences = _differences(one, other, drawn)
            for position, *rest in differences if forced else list(differences)[:1]:
                found_differences.append(
                    TokenDifference(int(repetition), int(request_id), number, position, *rest)
                )
    return found_differences


def check_tokens(jobs: Sequence[Job]) -> EqualityReport | None:
    """Compare all timed runs of the same requests; None where no run computed tokens.

    In 32 bits a token may differ where two logits tie within MARGIN_LIMIT, in 16 bits within
    MARGIN_LIMIT_16_BIT. Beams have no margins: they must be equal.
    """
    timed = [job for job in jobs if job.is_timed]
    groups = _groups(timed)
    compared = [group for group in groups.values() if len(group.runs) > 1]
    settings = {_setting(job) for group in compared for job, _ in group.runs}
    near_ties: dict[tuple[object, ...], TokenDifference] = {}
    failures: list[str] = []
    for key, group in groups.items():
        (reference, expected), *others = group.runs
        for job, frame in others:
            differences = compare_tokens(expected, frame, forced=group.forced, drawn=group.drawn)
            ties = [each for each in differences if each.is_rounding(group.limit)]
            large = next((each for each in differences if not each.is_rounding(group.limit)), None)
            if large is not None:
                failures.append(_describe(large, group, job, reference))
            elif group.drawn and len(ties) > max(1.0, group.limit * _num_positions(expected)):
                failures.append(_describe_draws(ties[0], len(ties), job, reference))
            else:
                near_ties.update({(key, *each[:4]): each for each in ties})
    not_compared = _not_compared(timed, list(groups.values()))
    if not compared and not not_compared:
        return None
    return EqualityReport(
        len({strategy for strategy, *_ in settings}),
        len(settings),
        sum(_num_positions(group.runs[0][1]) for group in compared),
        tuple(near_ties.values()),
        tuple(failures),
        not_compared,
        any(group.limit == MARGIN_LIMIT_16_BIT for group in compared),
    )


def _groups(timed: Sequence[Job]) -> dict[str, _Group]:
    """By what makes their tokens comparable; of runs that went well and whose requests are
    stored."""
    groups: dict[str, _Group] = {}
    for job in timed:
        run = RunStore(job.root).find(job.run_id)
        if run is None or run.status != "complete":
            continue
        is_16_bit = _num_bytes(run, job) < DTYPE_BYTES["float32"]
        workload = job.config.workload
        group = groups.setdefault(
            _requests_key(job, is_16_bit),
            _Group(
                [],
                forced=workload.output == "forced_ids" and workload.beam_width == 1,
                drawn=workload.temperature > 0,
                limit=MARGIN_LIMIT_16_BIT if is_16_bit else MARGIN_LIMIT,
            ),
        )
        group.runs.append((job, run.frame("requests", _COLUMNS)))
    return groups


def _num_bytes(run: StoredRun, job: Job) -> int:
    """Of an element of the model or of its KV, whichever is narrower. A checkpoint's own dtype is
    known once it was loaded."""
    config = job.config
    of_model = run.summary[0].get("model_dtype_bytes") or DTYPE_BYTES[config.model.dtype]
    return min(int(of_model), DTYPE_BYTES.get(config.kv.dtype, DTYPE_BYTES["float32"]))


def _requests_key(job: Job, is_16_bit: bool) -> str:
    """Runs with the same key answer the same requests with the same model."""
    values = to_mapping(job.config)
    kind, kv_dtype = values["device"]["kind"], values["kv"]["dtype"]
    same = [values["model"], values["workload"], values["seed"], kind, kv_dtype, is_16_bit]
    return json.dumps(same, sort_keys=True, default=str)


def _not_compared(timed: Sequence[Job], groups: Sequence[_Group]) -> tuple[str, ...]:
    lines = []
    if any(is_exported(job.root) for job in timed):
        lines.append("an export has no requests")
    alone = sum(len(group.runs) == 1 for group in groups)
    if alone and len(timed) > 1:
        lines.append(f"{alone} of {len(timed)} timed runs are the only ones of their requests")
    unfinished = 0
    for group in groups:
        indices = [_finished(frame).index for _, frame in group.runs]
        union = common = indices[0]
        for index in indices[1:]:
            union, common = union.union(index), common.intersection(index)
        unfinished += len(union) - len(common)
    if unfinished:
        lines.append(f"{unfinished} requests were finished in some of the runs only")
    return tuple(lines)


def _setting(job: Job) -> tuple[str, int, int]:
    config = job.config
    return (
        strategy_label(config.allocator),
        config.kv.page_size,
        config.engine.tensor_parallel,
    )


def _finished(requests: pd.DataFrame) -> pd.DataFrame:
    done = requests[requests["status"] == "finished"].set_index(["repetition", "request_id"])
    return done[["sequence_lens", "chosen_ids", "margins"]]


def _num_positions(requests: pd.DataFrame) -> int:
    return sum(map(len, _finished(requests)["chosen_ids"]))


class _Output(NamedTuple):
    """Of one sequence. margins: NaN where none were recorded."""

    ids: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]

    def padded(self, length: int) -> _Output:
        more = length - len(self.ids)
        return _Output(
            np.pad(self.ids, (0, more), constant_values=MISSING_ID),
            np.pad(self.margins, (0, more), constant_values=np.nan),
        )


def _outputs(lens: Any, ids: Any, margins: Any) -> list[_Output]:
    ids = np.asarray(ids, dtype=np.int64)
    gaps = np.asarray(margins, dtype=np.float64)
    if len(gaps) != len(ids):
        gaps = np.full(len(ids), np.nan)
    ends = np.cumsum(np.asarray(lens, dtype=np.int64))[:-1]
    return [_Output(*each) for each in zip(np.split(ids, ends), np.split(gaps, ends), strict=True)]


def _differences(one: _Output, other: _Output, drawn: bool) -> Iterator[tuple[Any, ...]]:
    """Position, expected id, chosen id and margin of each."""
    length = max(len(one.ids), len(other.ids))
    one, other = one.padded(length), other.padded(length)
    if drawn:
        margins = np.abs(one.margins - other.margins)
    else:
        margins = np.maximum(one.margins, other.margins)
    for p in np.flatnonzero(one.ids != other.ids):
        yield int(p), int(one.ids[p]), int(other.ids[p]), float(margins[p])


def _describe(difference: TokenDifference, group: _Group, job: Job, reference: Job) -> str:
    if np.isnan(difference.margin):
        is_missing = MISSING_ID in (difference.expected_id, difference.chosen_id)
        margin = "one output is shorter" if is_missing else "beams have no logit margin"
    else:
        what = "logit margins apart by" if group.drawn else "logit margin"
        margin = f"{what} {difference.margin:.2g} where rounding is at most {group.limit:g}"
    return f"{_where(difference, job, reference)}, {margin} {_runs(job, reference)}"


def _describe_draws(first: TokenDifference, count: int, job: Job, reference: Job) -> str:
    return (
        f"{_where(first, job, reference)}, logit margins apart by {first.margin:.2g}: the first of "
        f"{count} draws that differ while the logits agree {_runs(job, reference)}"
    )


def _where(difference: TokenDifference, job: Job, reference: Job) -> str:
    number = f", output {difference.output}" if job.config.workload.num_sequences > 1 else ""
    repeated = f", repetition {difference.repetition}" if job.config.repetitions > 1 else ""
    return (
        f"{job.label} chose {_token(difference.chosen_id)} where {reference.label} chose "
        f"{_token(difference.expected_id)}: request {difference.request_id}{repeated}{number}, "
        f"output position {difference.position}"
    )


def _token(token_id: int) -> str:
    return "no token" if token_id == MISSING_ID else f"token {token_id}"


def _runs(job: Job, reference: Job) -> str:
    return f"(runs {job.run_id}, {reference.run_id})"

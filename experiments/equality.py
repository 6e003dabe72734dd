"""Fairness check: every allocator must have led the model to the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.config import RunConfig
from harness.conversion import to_mapping
from harness.runs.jobs import Job, strategy_label
from harness.runs.store import RunStore

MARGIN_LIMIT = 1e-3
"""A different choice at a logit margin above this is no rounding: memory was mixed up."""


class TokenDifference(NamedTuple):
    """Where two runs of the same requests first chose differently.

    position: of the output. margin: the larger one of the two runs' gaps between the best and
    the second logit.
    """

    request_id: int
    position: int
    expected_id: int
    chosen_id: int
    margin: float


class EqualityReport(NamedTuple):
    """settings: allocators x page sizes x ranks compared. positions: output positions of one.

    near_ties: differences at margins up to MARGIN_LIMIT, the first of each pair of runs, without
    those at the same position of the same request.
    failures: one line for each pair of runs that differ by more.
    """

    settings: int
    positions: int
    near_ties: tuple[TokenDifference, ...]
    failures: tuple[str, ...]


def compare_tokens(
    expected: pd.DataFrame, found: pd.DataFrame, *, forced: bool
) -> tuple[TokenDifference | None, TokenDifference | None]:
    """The first difference of two runs' requests, and the first at a margin above the limit.

    forced: outputs were forced, so that every position is compared; otherwise what follows a
    request's first difference has another past and says nothing. Requests that only one of
    the runs finished are left out.
    """
    pair = _finished(expected).join(_finished(found).add_suffix("_found"), how="inner")
    first = first_large = None
    for request_id, row in zip(pair.index, pair.itertuples(index=False), strict=True):
        for difference in _differences(int(request_id), row, forced):
            first = first or difference
            if difference.margin > MARGIN_LIMIT:
                first_large = first_large or difference
        if first_large is not None:
            break
    return first, first_large


def check_tokens(jobs: Sequence[Job]) -> EqualityReport | None:
    """Compare all timed greedy fp32 runs of the same requests; None where there are no two.

    Lower precisions round differently with the batch, so that only their logits could be
    compared.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if _is_comparable(job.config):
            groups.setdefault(_requests_key(job.config), []).append(job)
    compared: set[tuple[str, int, int]] = set()
    positions = 0
    near_ties: dict[tuple[str, int, int], TokenDifference] = {}
    failures: list[str] = []
    for key, group in groups.items():
        frames = [(job, frame) for job in group if (frame := _requests(job)) is not None]
        if len(frames) < 2:
            continue
        reference, expected = frames[0]
        positions += sum(map(len, _finished(expected)["chosen_ids"]))
        compared.update(_setting(job.config) for job, _ in frames)
        forced = reference.config.workload.output == "forced_ids"
        for job, frame in frames[1:]:
            first, large = compare_tokens(expected, frame, forced=forced)
            if large is not None:
                failures.append(_describe(large, job, reference))
            elif first is not None:
                near_ties.setdefault((key, first.request_id, first.position), first)
    if not compared:
        return None
    return EqualityReport(len(compared), positions, tuple(near_ties.values()), tuple(failures))


def strategies_of(jobs: Iterable[Job]) -> int:
    """How many strategies the comparable runs of `jobs` cover."""
    return len({strategy_label(j.config.allocator) for j in jobs if _is_comparable(j.config)})


def _is_comparable(config: RunConfig) -> bool:
    return (
        config.executor.kind == "torch"
        and config.model.dtype == "float32"
        and config.kv.dtype in ("auto", "float32")
        and config.workload.temperature == 0
    )


def _requests_key(config: RunConfig) -> str:
    """Runs with the same key answer the same requests with the same model."""
    values = to_mapping(config)
    return json.dumps(
        [values["model"], values["workload"], values["seed"], values["device"]["kind"]],
        sort_keys=True,
        default=str,
    )


def _setting(config: RunConfig) -> tuple[str, int, int]:
    ranks = config.engine.tensor_parallel
    return strategy_label(config.allocator), config.kv.page_size, ranks


def _requests(job: Job) -> pd.DataFrame | None:
    run = RunStore(job.root).find(job.run_id)
    if run is None or run.status != "complete":
        return None
    return run.frame("requests")


def _finished(requests: pd.DataFrame) -> pd.DataFrame:
    done = requests[(requests["status"] == "finished") & (requests["repetition"] == 0)]
    return done.set_index("request_id")[["chosen_ids", "margins"]]


def _differences(request_id: int, row: Any, forced: bool) -> list[TokenDifference]:
    expected, found = np.asarray(row.chosen_ids), np.asarray(row.chosen_ids_found)
    length = min(len(expected), len(found))
    positions = np.flatnonzero(expected[:length] != found[:length])
    if not forced:
        positions = positions[:1]
    margins = np.maximum(row.margins[:length], row.margins_found[:length])
    return [
        TokenDifference(request_id, int(p), int(expected[p]), int(found[p]), float(margins[p]))
        for p in positions
    ]


def _describe(difference: TokenDifference, job: Job, reference: Job) -> str:
    return (
        f"{job.label} chose token {difference.chosen_id} where {reference.label} chose "
        f"{difference.expected_id}: request {difference.request_id}, output position "
        f"{difference.position}, logit margin {difference.margin:.2g} "
        f"(runs {job.run_id}, {reference.run_id})"
    )

"""What must hold in any comparison, and what the literature leads one to expect."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.equality import MARGIN_LIMIT_16_BIT, EqualityReport, check_tokens
from experiments.equivalence import equivalence_lines
from experiments.verdicts import are_exact, exact_verdict
from harness.config import AllocatorConfig, RunConfig
from harness.measure.ledger import CLASSES
from harness.measure.metrics import METRIC_NAMES
from harness.measure.statistics import MIN_PAIRS_FOR_VERDICT, compare, paired_differences
from harness.runs.jobs import Job
from harness.runs.varied_settings import varied_settings

SHARES = tuple("utilisation" if name == "token" else f"{name}_share" for name in CLASSES)
"""Columns of the shares that add up to the whole pool."""

SUM_TOLERANCE = 1e-9

EXPECTED_ORDER = ("max", "pow2", "oracle")
"""Estimates of contiguous strategies from worst to best; `paged` is expected above all."""


class Checks(NamedTuple):
    """lines: what was found, for people. failures: what makes the comparison worthless."""

    lines: tuple[str, ...]
    failures: tuple[str, ...]


def run_checks(rows: pd.DataFrame, jobs: Sequence[Job]) -> Checks:
    """Classes sum to the pool, tokens are the same, runs that decided alike take the same time, the
    strategies' order is as published. A check that breaks is a failure, and the others are made."""
    complete = rows[rows["status"] == "complete"]
    if complete.empty:
        return Checks((), ())
    parts = (
        _made("ledger check", lambda: check_classes(complete)),
        _made("check of the requests", lambda: check_requests(complete, jobs)),
        _made("check of settings", lambda: Checks(tuple(idle_settings(complete, jobs)), ())),
        _made("token check", lambda: describe_equality(check_tokens(jobs))),
        _made("equivalence check", lambda: Checks(tuple(equivalence_lines(complete, jobs)), ())),
        _made("check of the order", lambda: Checks(tuple(check_order(complete)), ())),
    )
    return Checks(
        tuple(line for part in parts for line in part.lines),
        tuple(failure for part in parts for failure in part.failures),
    )


def _made(name: str, check: Callable[[], Checks]) -> Checks:
    """What a check finds; one that raises has not been passed."""
    try:
        return check()
    except Exception as error:
        return Checks((), (broken(name, error),))


def broken(name: str, error: Exception) -> str:
    """One line about a check or a figure that raised, with the place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"the {name} broke: {type(error).__name__}: {said} ({where})"


def check_classes(rows: pd.DataFrame) -> Checks:
    """Whether every run's shares of the pool add up to 100 %, each of them from 0 to 100 %."""
    shares = rows[list(SHARES)]
    sums = shares.sum(axis=1, skipna=False)
    deviation = (sums - 1).abs()
    failures = [
        f"{_repetition(rows.loc[index])}: ledger classes sum to {100 * sums[index]:.9f} % of the "
        "pool, not 100 %"
        for index in rows.index[~(deviation <= SUM_TOLERANCE)]
    ]
    outside = (shares < -SUM_TOLERANCE) | (shares > 1 + SUM_TOLERANCE)
    failures += [
        f"{_repetition(rows.loc[index])}: ledger class {name} is "
        f"{100 * shares.loc[index, column]:.3g} % of the pool"
        for name, column in zip(CLASSES, SHARES, strict=True)
        for index in rows.index[outside[column]]
    ]
    if failures:
        return Checks((), tuple(failures))
    return Checks(
        (
            f"ledger classes sum to 100 % of the pool in all {len(rows)} repetitions "
            f"(off by at most {deviation.max():.0e})",
        ),
        (),
    )


def _repetition(row: pd.Series) -> str:
    return (
        f"{row['strategy']} · page {row['page_size']} · {row['workload']}, repetition "
        f"{row['repetition']} (run {row['run_id']})"
    )


def check_requests(rows: pd.DataFrame, jobs: Sequence[Job]) -> Checks:
    """Whether runs that were asked for the same workload served the same requests, and those that
    differ in nothing but the strategy had the same pool, seed by seed. A run that was stored
    without a digest of its requests is left out."""
    if "requests_digest" not in rows:
        return Checks((), ())
    configs = {job.run_id: job.config for job in jobs}
    rows = rows[rows["run_id"].isin(configs) & rows["requests_digest"].notna()]
    given = [configs[run_id] for run_id in rows["run_id"]]
    base = [rows["part"], rows["executor"], rows["seed"]]
    failures = []
    for _, group in rows.groupby([*base, list(map(_asked_workload, given))], sort=False):
        served = group.drop_duplicates("requests_digest")
        if len(served) > 1:
            failures.append(
                f"{_where(served)} did not serve the same requests: what a workload leaves open is "
                "fitted to a run; give workload.length_scale, workload.max_len and "
                "workload.num_requests"
            )
    for _, group in rows.groupby([*base, list(map(_asked_memory, given))], sort=False):
        pools = group["pool_tokens"]
        if pools.max() - pools.min() > max(group["page_size"].max(), SAME_POOL * pools.max()):
            ends = group.loc[[pools.idxmin(), pools.idxmax()]]
            failures.append(
                f"{_where(ends)} had pools of {pools.min():,.0f} and {pools.max():,.0f} tokens: "
                "give kv.pool_tokens"
            )
    return Checks((), tuple(failures))


def idle_settings(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """One line for each setting that a table varies and that no simulated run of it reads: all
    else the same, the runs are equal in every figure, as where another key overrides it."""
    lines = []
    rows = rows[rows["executor"] == "simulated"]
    for (part, workload), group in rows.groupby(["part", "workload"], sort=False):
        own = [job for job in jobs if job.run_id in set(group["run_id"]) and job.part == part]
        varied = varied_settings(own)
        settings = {key: group["run_id"].map(values) for key, values in varied.items()}
        columns = [name for name in METRIC_NAMES if name in group and name not in MEASURED]
        for key in settings:
            others = [settings[other] for other in settings if other != key]
            keys = [group["strategy"], group["page_size"], group["seed"], *others]
            cells = [cell for _, cell in group.groupby(keys, dropna=False) if len(cell) > 1]
            if cells and all(len(cell[columns].drop_duplicates()) == 1 for cell in cells):
                values = ", ".join(dict.fromkeys(settings[key]))
                lines.append(f"{part}, {workload}: {key}={values} changes no figure of any run")
    return lines


MEASURED = ("allocator_us_per_step",)
"""A time of this machine even in simulation."""

SAME_POOL = 0.01
"""Pools may differ by so much, as what a GPU has left is measured anew, or by a page."""


def _asked_workload(config: RunConfig) -> str:
    """What decides the requests, but for the seed and for what is derived."""
    workload = replace(config.cluster.workload(config.workload), fit_len=None)
    return repr((workload, config.model))


def _asked_memory(config: RunConfig) -> str:
    """What decides the pool, but for the seed: all but the strategy and its pages."""
    kv = replace(config.kv, page_size=1)
    return repr(replace(config, seed=0, repetitions=1, allocator=AllocatorConfig(), kv=kv))


def _where(rows: pd.DataFrame) -> str:
    """The first two of `rows`, which are not alike, in words."""
    first, second = (f"run {run_id}" for run_id in rows["run_id"].iloc[:2])
    head = rows.iloc[0]
    return f"{head['part']}, {head['workload']}, seed {head['seed']}: {first} and {second}"


def check_order(rows: pd.DataFrame) -> list[str]:
    """One line a part, workload and fit: is contiguous max < pow2 < oracle < paged?

    Compared are utilisation and batched requests at one page size, each rung with the next, paired
    by seed; all pairs of a line are one family (docs/statistics.md), and an order is claimed where
    each of them is significant. The order is the PagedAttention paper's (SOSP 2023, Figs. 2 and
    13); another one is a finding to look into, not a failure, and none at all where memory was
    scarce for no rung.
    """
    lines = []
    keys = ["part", "workload", "executor"]
    for (part, workload, _), group in rows.groupby(keys, sort=False):
        contiguous = group[(group["allocator"] == "contiguous")]
        for fit, reserved in contiguous.groupby("fit", sort=False):
            pages = reserved["page_size"].unique()
            paged = group[(group["allocator"] == "paged") & group["page_size"].isin(pages)]
            ladder = [reserved[reserved["expected"] == name] for name in EXPECTED_ORDER]
            ladder.append(paged[paged["expected"] == "none"])
            if len(pages) == 1 and all(len(rung) for rung in ladder):
                varied = group.loc[reserved.index.union(paged.index), "memory_fraction"]
                if varied.nunique(dropna=False) == 1:
                    lines += [f"{part}, {workload}, {fit}: {_order_line(ladder)}"]
    return lines


def _order_line(ladder: Sequence[pd.DataFrame]) -> str:
    found, pairs = [], []
    names = (*EXPECTED_ORDER, "paged")
    for metric, scale, unit in (("utilisation", 100, " %"), ("batched_requests", 1, "")):
        title = metric.replace("_", " ")
        values = " / ".join(f"{scale * rung[metric].mean():.1f}" for rung in ladder)
        found.append(f"{title} {values}{unit}")
        by_seed = [rung.groupby("seed")[metric].mean().to_dict() for rung in ladder]
        for (first, low), (second, high) in itertools.pairwise(zip(names, by_seed, strict=True)):
            pairs.append(_Pair(f"{first} and {second} in {title}", low, high))
    scarce = [bool(rung["memory_bound"].astype(bool).any()) for rung in ladder]
    if not any(scarce):
        verdict = "memory was scarce for none of them, so their order says nothing of allocation"
    else:
        verdict = _order_in_words(pairs)
        if not all(scarce):
            ample = [name for name, is_scarce in zip(names, scarce, strict=True) if not is_scarce]
            verdict += f" (memory was not scarce for {', '.join(ample)})"
    return f"{verdict}: {', '.join(found)}"


class _Pair(NamedTuple):
    """Two rungs, the higher one expected second, with a metric by seed."""

    words: str
    low: dict[int, float]
    high: dict[int, float]


def _order_in_words(pairs: Sequence[_Pair]) -> str:
    """What paired differences carry: the order as expected, another one, or which pairs are left
    open by so many seeds."""
    exact = [are_exact(pair.high, pair.low) for pair in pairs]
    differences = [paired_differences(pair.high, pair.low) for pair in pairs]
    tested = [each for each, is_exact in zip(differences, exact, strict=True) if not is_exact]
    n = min(map(len, differences))
    seeds = "1 seed is" if n == 1 else f"{n} seeds are"
    if n < MIN_PAIRS_FOR_VERDICT and not all(exact):
        return f"{seeds} too few for an order, {MIN_PAIRS_FOR_VERDICT} are needed"
    verdicts = iter(each.verdict for each in compare(tested, higher_is_better=True))
    found: dict[str, list[str]] = {}
    for pair, own, is_exact in zip(pairs, differences, exact, strict=True):
        verdict = exact_verdict(float(own[0]), True) if is_exact else next(verdicts)
        found.setdefault(verdict, []).append(pair.words)
    against, better = found.pop("worse", []), found.pop("better", [])
    expected = f"{' < '.join(EXPECTED_ORDER)} < paged"
    if len(better) == len(pairs):
        return expected
    said = [f"NOT {expected}: the other way round are {'; '.join(against)}"] if against else []
    if left := [words for same in found.values() for words in same]:
        said.append(f"not separated by {n} seeds: {'; '.join(left)}")
    return ". ".join(said)


def describe_equality(report: EqualityReport | None) -> Checks:
    """The result of the token check in words; nothing where no run computed tokens."""
    if report is None:
        return Checks((), ())
    left_out = tuple(f"tokens not compared: {reason}" for reason in report.not_compared)
    if report.failures:
        failures = tuple(f"tokens differ: {failure}" for failure in report.failures)
        return Checks(left_out, failures)
    if not report.settings:
        return Checks(left_out, ())
    line = f"identical tokens under all {report.strategies} allocators ({report.positions:,} "
    line += "positions"
    if report.settings > report.strategies:
        line += f", {report.settings} settings"
    if report.is_16_bit:
        line += f"; 16 bits, in which margins up to {MARGIN_LIMIT_16_BIT:g} are rounding"
    line += ")"
    if report.near_ties:
        margin = max(tie.margin for tie in report.near_ties)
        count = len(report.near_ties)
        where = "a position where" if count == 1 else f"{count} positions where"
        line += f" but for {where} two logits tie within rounding (margin at most {margin:.1g})"
    return Checks((line, *left_out), ())

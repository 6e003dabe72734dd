"""The comparison: one table a part and workload, a row a strategy and setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.interference import count_disturbed, interference_notes
from experiments.provenance import with_device
from experiments.table_columns import (
    MEMORY_BLOCK,
    SATURATED,
    SERVICE_BLOCK,
    SIMULATED_BLOCK,
    Column,
)
from harness.measure.statistics import MIN_REPETITIONS_FOR_INTERVAL, Interval, t_interval
from harness.runs.jobs import Job
from harness.runs.varied_settings import short_name, varied_settings


@dataclass(frozen=True, slots=True)
class TableRow:
    """labels: strategy, pages, and the settings that differ. cells, best: by metric.

    is_relieved: not memory-bound, while another row under the same conditions is. queue_grows: in
    most repetitions. error: of a failed run, else empty. pool_tokens: mean of the repetitions, NaN
    where unknown, as of a failed run. run_ids: what it is made from. disturbed: in how
    many repetitions others had too much of the processor.
    """

    labels: tuple[str, ...]
    cells: Mapping[str, Interval]
    best: frozenset[str]
    is_memory_bound: bool
    is_relieved: bool = False
    error: str = ""
    queue_grows: bool = False
    pool_tokens: float = math.nan
    run_ids: tuple[str, ...] = ()
    disturbed: int = 0

    @property
    def repetitions(self) -> int:
        """Of the metric that has most."""
        return max(cell.n for cell in self.cells.values())

    @property
    def n(self) -> str:
        """The repetitions, and how many of them were disturbed."""
        marked = f" ({self.disturbed}§)" if self.disturbed else ""
        return f"{self.repetitions}{marked}"


@dataclass(frozen=True, slots=True)
class Table:
    """blocks: the columns, in blocks that fit a terminal. is_simulated: its runs are."""

    part: str
    workload: str
    title: str
    notes: tuple[str, ...]
    label_heads: tuple[str, ...]
    blocks: tuple[tuple[Column, ...], ...]
    rows: tuple[TableRow, ...]
    is_simulated: bool


MAX_VARIANTS = 3

CONDITIONS = ("workload.", "model.", "executor.", "device.", "kv.memory_fraction", "kv.pool_tokens")
"""Keys that say what a strategy is up against: rows that differ in one compete for no mark."""


def make_tables(
    rows: pd.DataFrame, jobs: Sequence[Job], columns: Sequence[Column] = ()
) -> list[Table]:
    """Tables in the rows' order of parts and workloads; `jobs` are where `rows` came from.

    columns: in place of those that such runs are compared by.
    """
    rows = derived(with_device(rows, jobs))
    groups = rows.groupby(["part", "workload", "executor"], sort=False)
    return [_table(str(key[0]), str(key[1]), group, jobs, columns) for key, group in groups]


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with tokens_per_step, and per GiB of KV, which no run stores."""
    if "num_steps" not in rows:
        return rows
    per_step = rows["output_tokens"] / rows["num_steps"]
    gib = (rows["pool_bytes"] + rows["draft_pool_bytes"]) / 2**30
    return rows.assign(tokens_per_step=per_step, tokens_per_step_per_gib=per_step / gib)


def _table(
    part: str, workload: str, group: pd.DataFrame, jobs: Sequence[Job], chosen: Sequence[Column]
) -> Table:
    is_simulated = bool((group["executor"] == "simulated").all())
    has_times = bool((group["cost"] != "constant").all()) if is_simulated else True
    blocks = (MEMORY_BLOCK, SERVICE_BLOCK) if has_times else (SIMULATED_BLOCK,)
    if chosen:
        blocks = (tuple(chosen),)
    columns = {column.metric: column for block in (*blocks, (SATURATED,)) for column in block}
    varied = varied_settings([job for job in jobs if job.run_id in set(group["run_id"])])
    settings = pd.DataFrame(
        {key: group["run_id"].map(values) for key, values in varied.items()}, index=group.index
    )
    keys = [group["strategy"], group["page_size"], *(settings[key] for key in settings)]
    cells: list[tuple[pd.DataFrame, dict[str, Interval]]] = []
    for _, runs in group.groupby(keys, sort=False, dropna=False):
        values = {metric: _interval(runs, metric) for metric in columns}
        cells.append(
            (runs, {k: _once(v) for k, v in values.items()} if _is_exact(runs) else values)
        )
    conditions = [key for key in settings if key.startswith(CONDITIONS)]
    places = [tuple(settings.loc[runs.index[0], conditions]) for runs, _ in cells]
    best = _best(columns.values(), [cell for _, cell in cells], places, is_simulated=is_simulated)
    short = {
        place for place, (runs, _) in zip(places, cells, strict=True) if _is_memory_bound(runs)
    }
    table_rows = tuple(
        _row(
            runs,
            values,
            tuple(settings.loc[runs.index[0]]),
            frozenset(metric for metric in columns if index in best[metric]),
            not _is_memory_bound(runs) and places[index] in short,
        )
        for index, (runs, values) in enumerate(cells)
    )
    return Table(
        part,
        workload,
        _title(part, workload, group),
        (
            *_notes(group, table_rows, is_simulated, [short_name(key) for key in conditions]),
            *_exact_note([runs for runs, _ in cells]),
        ),
        ("strategy", "page x pages", *map(short_name, varied)),
        blocks,
        table_rows,
        is_simulated,
    )


def _row(
    runs: pd.DataFrame,
    values: Mapping[str, Interval],
    settings: tuple[str, ...],
    best: frozenset[str],
    is_relieved: bool,
) -> TableRow:
    first = runs.iloc[0]
    pools = runs.dropna(subset=["pool_pages"]) if "pool_pages" in runs else runs.iloc[:0]
    shown = f"{first['page_size']}"
    if len(pools):
        shown += f" x {_range(pools['pool_pages'], ',.0f', '-')}"
    failed = runs[runs["status"] != "complete"]
    return TableRow(
        labels=(str(first["strategy"]), shown, *settings),
        cells=values,
        best=best,
        is_memory_bound=_is_memory_bound(runs),
        is_relieved=is_relieved,
        error=str(failed.iloc[0]["error"]) if len(failed) else "",
        queue_grows="queue_grows" in runs and bool(runs["queue_grows"].mean() > 0.5),
        pool_tokens=float(pools["pool_tokens"].mean()) if len(pools) else math.nan,
        run_ids=tuple(dict.fromkeys(runs["run_id"])),
        disturbed=count_disturbed(runs),
    )


def _is_memory_bound(runs: pd.DataFrame) -> bool:
    """In at least half of the repetitions that were done."""
    known = runs["memory_bound"].dropna() if "memory_bound" in runs else []
    return bool(len(known) and known.astype(bool).mean() >= 0.5)


def _interval(runs: pd.DataFrame, metric: str) -> Interval:
    if metric not in runs:
        return Interval(math.nan, math.nan, 0)
    return t_interval(runs[metric].to_numpy(dtype=float))


def _is_exact(runs: pd.DataFrame) -> bool:
    """Whether simulated repetitions are the same at every seed: nothing in them is drawn, as where
    each replays the whole of a trace."""
    figures = ["num_steps", "prompt_tokens", "utilisation", "batched_requests", "e2e_ms"]
    if len(runs) < 2 or not {*figures} <= {*runs} or (runs["executor"] != "simulated").any():
        return False
    return bool(runs[figures].notna().all(axis=None)) and len(runs[figures].drop_duplicates()) == 1


def _exact_note(cells: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    num_exact = sum(map(_is_exact, cells))
    if not num_exact:
        return ()
    which = "All rows" if num_exact == len(cells) else f"{num_exact} of {len(cells)} rows"
    return (f"{which} are the same at every seed: exact, one observation and not a sample.",)


def _once(interval: Interval) -> Interval:
    """What is one observation however often it is repeated."""
    return Interval(interval.mean, math.nan, min(interval.n, 1))


def _best(
    columns: Iterable[Column],
    cells: Sequence[Mapping[str, Interval]],
    places: Sequence[Hashable],
    *,
    is_simulated: bool,
) -> dict[str, set[int]]:
    """Rows that show the best mean of each column among those of the same place; none where more
    than half of them do, and of times none where a row is of a single measurement."""
    counts = [max(value.n for value in cell.values()) for cell in cells]
    is_sampled = is_simulated or 1 not in counts
    best: dict[str, set[int]] = {}
    for column in columns:
        best[column.metric] = set()
        if column.best == "none" or (column.is_time and not is_sampled):
            continue
        means = [column.shown(cell[column.metric].mean) for cell in cells]
        for place in dict.fromkeys(places):
            own = [i for i, each in enumerate(places) if each == place and math.isfinite(means[i])]
            if len(own) < 2:
                continue
            extreme = max if column.best == "max" else min
            top = extreme(means[index] for index in own)
            winners = {index for index in own if means[index] == top}
            if 2 * len(winners) <= len(own):
                best[column.metric] |= winners
    return best


def _title(part: str, workload: str, group: pd.DataFrame) -> str:
    first = group.iloc[0]
    how = "simulated" if first["executor"] == "simulated" else "timed"
    models = group["model"].unique()
    return " · ".join([part, workload, how, *(models if len(models) == 1 else ())])


def _notes(
    group: pd.DataFrame, rows: Sequence[TableRow], is_simulated: bool, conditions: Sequence[str]
) -> tuple[str, ...]:
    complete = group[group["status"] == "complete"]
    notes = []
    if len(complete):
        notes.append(_workload_note(list(complete["workload_description"].unique())))
        notes.append(_pool_note(complete, rows, conditions))
    if "swaps" in complete and (swapping := complete[complete["preemption"] == "swap"]).size:
        missed = int((swapping["preemptions"] - swapping["swaps"]).sum())
        if missed > 0:
            notes.append(
                f"{missed:,} of {int(swapping['preemptions'].sum()):,} preemptions were "
                "recomputed, not swapped: no room on the host (engine.swap_tokens), or nothing "
                "that could go on as it was (an outgrown reservation, beams between two steps)."
            )
    if is_simulated:
        notes += _cost_notes(group, complete)
    elif (complete["device"] == "cpu").any():
        notes.append(
            "CPU figures: most of a step is matrix multiplication (bound by GEMM), which no "
            "allocator changes; on a GPU memory weighs more."
        )
    if not is_simulated:
        notes += interference_notes(complete)
    notes += _unbound_notes([row for row in rows if not row.is_memory_bound and not row.error])
    if any(row.queue_grows for row in rows):
        notes.append(
            "‡ the queue grows: requests come faster than they are served, so latencies are those "
            "of a run of this length (docs/metrics.md)."
        )
    notes += _untested_note(group)
    notes += [f"FAILED {' · '.join(row.labels)}: {row.error}" for row in rows if row.error]
    return tuple(notes)


def _untested_note(group: pd.DataFrame) -> list[str]:
    if "contract_tested" not in group or group["contract_tested"].all():
        return []
    own = group[~group["contract_tested"].astype(bool)]
    names = ", ".join(dict.fromkeys(own["strategy"]))
    specs = " or A=".join(dict.fromkeys(own["allocator"]))
    return [
        f"Not put through the contract test: {names}. It may break promises where no run "
        f"looks: make contract A={specs}."
    ]


def _unbound_notes(rows: Sequence[TableRow]) -> list[str]:
    """What the mark of rows that are not memory-bound means beside the others."""
    if not rows:
        return []
    note = (
        "† not memory-bound: the queue waited for memory less than half of the time before the "
        "drain"
    )
    relieved = sum(row.is_relieved for row in rows)
    if relieved == len(rows):
        return [f"{note}, while it does under another strategy: {RELIEVED}."]
    note += ", so the row says little about allocation"
    return [
        f"{note}, but where it does wait under another strategy: {RELIEVED}."
        if relieved
        else f"{note}."
    ]


RELIEVED = "what a row is ahead by there is due to memory, and at least so much"

_COST_NOTES = {
    "roofline": (
        "a step takes what its bytes and operations take on the GPU at its published figures "
        "(executor.gpu), and the host what executor.host_us says: see docs/simulator.md."
    ),
    "calibrated": (
        "a step takes what was fitted to steps of real runs (executor.calibration); "
        "docs/simulator.md says how far off that is."
    ),
    "constant": (
        "every step takes the same virtual time, so times and rates are not shown; tokens per step "
        "count instead."
    ),
}


def _cost_notes(group: pd.DataFrame, complete: pd.DataFrame) -> list[str]:
    """Where a simulated step's time comes from, for each executor.cost of `group`."""
    costs = list(group["cost"].unique())
    notes = [
        f"Simulated{f' with executor.cost={cost}' if len(costs) > 1 else ''}: {_COST_NOTES[cost]}"
        for cost in costs
    ]
    beyond = complete["extrapolated_share"].dropna() if "extrapolated_share" in complete else []
    if len(beyond) and beyond.max() > 0:
        notes.append(
            f"EXTRAPOLATED: up to {100 * beyond.max():.1f} % of a run's steps are unlike any that "
            "the calibration was fitted to (larger batches, longer contexts, copies, swaps): "
            "their times are a guess. Calibrate on runs that have such steps."
        )
    return notes


def _workload_note(descriptions: Sequence[str]) -> str:
    """All descriptions in one: of what is not said of every run, up to three variants."""
    parts = [description.split("; ") for description in descriptions]
    if len({len(each) for each in parts}) > 1:
        said = list(dict.fromkeys(itertools.chain.from_iterable(parts)))
        shared = [part for part in said if all(part in each for each in parts)]
        others = [part for part in said if part not in shared]
        return "; ".join([*shared, f"of some runs: {_variants(others)}"])
    return "; ".join(_variants(list(dict.fromkeys(each))) for each in zip(*parts, strict=True))


def _variants(found: Sequence[str]) -> str:
    shown = " or ".join(found[:MAX_VARIANTS])
    return shown if len(found) <= MAX_VARIANTS else f"{shown} or others"


def _pool_note(complete: pd.DataFrame, rows: Sequence[TableRow], conditions: Sequence[str]) -> str:
    pool = _range(complete["pool_tokens"], ",.0f")
    of_draft = complete["draft_pool_bytes"] / 2**30
    size = f"{_range(complete['pool_bytes'] / 2**30 + of_draft, '.3g')} GiB of KV"
    if of_draft.any():
        size += f", of which a draft model has {_range(of_draft, '.3g')}"
    each = ""
    if "replicas" in complete:
        each = f" in each of {_range(complete['replicas'].fillna(1), ',.0f')} replicas"
    counts = [row.repetitions for row in rows if not row.error]
    fewest, most = min(counts), max(counts)
    seeds = f"{fewest}" if fewest == most else f"{fewest}-{most}"
    shown = (
        "± is the 95 % interval"
        if fewest >= MIN_REPETITIONS_FOR_INTERVAL
        else "no interval below 5"
    )
    if fewest == 1 and (complete["executor"] != "simulated").any():
        shown = "no interval; a single repetition of a timed run carries no verdict"
    imagined = complete["imagined_memory_gib"].dropna()
    device = (
        f"; memory fractions are of an imagined device of {_range(imagined, 'g')} GiB"
        if len(imagined) and complete["memory_fraction"].notna().any()
        else ""
    )
    alike = f" among rows of the same {', '.join(conditions)}" if conditions else ""
    return (
        f"Pool: {pool} tokens, {size}{each}{device}. Repetitions: {seeds} ({shown}). "
        f"Best mean of a column{alike}: *."
    )


def _range(values: pd.Series, digits: str, between: str = " to ") -> str:
    low, high = format(values.min(), digits), format(values.max(), digits)
    return low if low == high else f"{low}{between}{high}"

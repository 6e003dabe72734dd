"""What each cell of a search sustained: the answer of `search` in an experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.conversion import to_mapping
from harness.measure.backlog import is_sustained, majority_sustains
from harness.measure.statistics import t_interval
from harness.runs.bisection import Bracket, Probe, Search, bracket
from harness.runs.jobs import Job
from harness.runs.rows import settings
from harness.runs.varied_settings import short_name, varied_settings


def sustained_rates(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """A row for each cell that was searched, in order; empty without any.

    rows: as from `collect_rows(jobs)`. A cell is everything but the searched key and the seed,
    whichever ranges it was searched in; its settings are columns as in `rows`, and `varied` says
    in words which tell cells of its part apart. Then

    key, bound_ms: what was searched, and the bound on mean normalised latency.
    sustained: the highest value that more than half of the seeds sustained; 0 where none was.
    unsustained: the lowest value that was not; infinity where all were.
    num_probes, seeds: values tried, and repetitions of each.
    by_seed: the highest value that each seed sustained among those tried, by seed.
    mean, half_width: of by_seed; the half-width of the 95 % interval is NaN below 5 seeds.
    run_id: of the run at `sustained`, for what else it measured; empty where there is none.
    note: why the answer is not within the tolerance; empty where it is.
    """
    cells: dict[str, list[Job]] = {}
    for job in jobs:
        if job.search is not None:
            cells.setdefault(_cell(job), []).append(job)
    by_run = {str(run_id): runs for run_id, runs in rows.groupby("run_id")} if len(rows) else {}
    varied = _varied([job for probes in cells.values() for job in probes])
    return pd.DataFrame(
        [
            {**_answer(probes, by_run), "varied": varied[probes[0].run_id]}
            for probes in cells.values()
        ]
    )


def print_sustained(frame: pd.DataFrame, console: Console) -> None:
    """A line for each cell of `sustained_rates`, part by part."""
    for (part, key, bound_ms), cells in frame.groupby(["part", "key", "bound_ms"], sort=False):
        title = (
            f"{part}: highest {key} at a mean normalised latency of at most {bound_ms:g} ms/token"
        )
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for head in ("strategy", "", "sustained", "not sustained", "by seed", "probes", ""):
            table.add_column(head, justify="left" if head in ("", "strategy") else "right")
        for row in cells.to_dict("records"):
            spread = f"{row['mean']:.4g} ±{row['half_width']:.2g}"
            table.add_row(
                Text(row["strategy"]),
                Text(row["varied"]),
                f"{row['sustained']:.4g}" if row["sustained"] else "-",
                f"{row['unsustained']:.4g}" if row["unsustained"] < math.inf else "-",
                spread if math.isfinite(row["half_width"]) else "",
                str(row["num_probes"]),
                Text(row["note"]),
            )
        console.print()
        console.print(Text(title, style="bold"))
        console.print(table, soft_wrap=True)


_READ = ["seed", "normalised_latency_ms", "queue_grows"]
"""What tells whether a run sustained its load, and whose run it is."""


def _cell(job: Job) -> str:
    search = job.search
    assert search is not None
    config = to_mapping(job.config)
    *groups, last = search.key.split(".")
    group: Any = config
    for name in groups:
        group = group[name]
    del group[last]
    for name in ("seed", "repetitions"):
        config.pop(name)
    asked = (search.key, search.tolerance, search.normalised_latency_ms)
    return f"{job.part} {asked} {config}"


def _answer(probes: Sequence[Job], by_run: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    search = probes[0].search
    assert search is not None
    rows = {job.run_id: by_run[job.run_id] for job in probes if job.run_id in by_run}
    values = {job.run_id: _value(job) for job in probes}
    tried: dict[float, list[dict[Any, Any]]] = {}
    errors: list[str] = []
    for run_id, runs in rows.items():
        if (runs["status"] == "complete").all():
            tried.setdefault(values[run_id], []).extend(runs[_READ].to_dict("records"))
        else:
            errors.append(f"{short_name(search.key)} {values[run_id]:g}: {runs['error'].iloc[0]}")
    bound = search.normalised_latency_ms
    found = bracket([Probe(v, majority_sustains(each, bound)) for v, each in tried.items()])
    by_seed = _by_seed(tried, bound)
    interval = t_interval(np.array(list(by_seed.values())))
    at_best = [run_id for run_id in rows if values[run_id] == found.sustained]
    chosen = settings(probes[0].config)
    chosen.pop(short_name(search.key), None)
    return {
        "part": probes[0].part,
        **chosen,
        "key": search.key,
        "bound_ms": bound,
        "sustained": found.sustained,
        "unsustained": found.unsustained,
        "num_probes": len(tried),
        "seeds": len(by_seed),
        "by_seed": by_seed,
        "mean": interval.mean,
        "half_width": interval.half_width,
        "run_id": at_best[0] if at_best else "",
        "note": errors[0] if errors else _note(search, found),
    }


def _by_seed(tried: Mapping[float, Sequence[Mapping[Any, Any]]], bound: float) -> dict[int, float]:
    probes: dict[int, list[Probe]] = {}
    for value, runs in tried.items():
        for run in runs:
            probes.setdefault(int(run["seed"]), []).append(Probe(value, is_sustained(run, bound)))
    return {seed: bracket(own).sustained for seed, own in sorted(probes.items())}


def _note(search: Search, found: Bracket) -> str:
    name = short_name(search.key)
    if found.sustained == 0:
        return f"none sustained, down to {name} {found.unsustained:g}"
    if found.unsustained == math.inf:
        return f"all sustained, up to {name} {found.sustained:g}"
    if found.unsustained > found.sustained * (1 + search.tolerance):
        return f"still between {found.sustained:g} and {found.unsustained:g}"
    return ""


def _value(job: Job) -> float:
    assert job.search is not None
    value: Any = job.config
    for name in job.search.key.split("."):
        value = getattr(value, name)
    return float(value)


def _varied(jobs: Sequence[Job]) -> dict[str, str]:
    """What tells the cells of each part apart, in words, by run id."""
    words: dict[str, str] = {}
    for part in dict.fromkeys(job.part for job in jobs):
        group = [job for job in jobs if job.part == part]
        searched = {job.search.key for job in group if job.search is not None}
        varied = varied_settings(group)
        for job in group:
            chosen = [(key, values[job.run_id]) for key, values in varied.items()]
            words[job.run_id] = ", ".join(
                f"{short_name(key)} {value}"
                for key, value in chosen
                if key not in searched and value != "-"
            )
    return words

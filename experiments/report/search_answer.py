"""What a search found, in sentences: the highest value that each strategy sustained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from experiments.sustained_rate import sustained_rates
from harness.measure.statistics import Comparison, compare, paired_differences
from harness.runs.jobs import Job
from harness.runs.varied_settings import short_name


class Searched(NamedTuple):
    """Cells of one part and bound. cells: as from `sustained_rates`. sentence: best and baseline
    where most strategies were searched alike."""

    title: str
    sentence: str
    cells: pd.DataFrame


def search_answers(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Searched]:
    """One for each part, workload and bound that was searched; empty without a search."""
    frame = sustained_rates(rows, jobs)
    if frame.empty:
        return []
    groups = frame.groupby(["part", "workload", "key", "bound_ms"], sort=False)
    return [_searched(str(key[0]), str(key[1]), cells) for key, cells in groups]


def _searched(part: str, workload: str, cells: pd.DataFrame) -> Searched:
    key, bound = str(cells["key"].iloc[0]), float(cells["bound_ms"].iloc[0])
    bounded = f"at a mean normalised latency of {bound:g} ms/token"
    title = f"{part} · {workload} · highest {key} {bounded}"
    like, where = _alike(cells)
    return Searched(title, _sentence(workload, where, key, bound, like), cells)


def _alike(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The cells at the settings that most strategies were searched at, and these in words."""
    strategies = cells.groupby(["page_size", "varied"], sort=False)["strategy"].nunique()
    page_size, varied = strategies.idxmax()
    if strategies.max() < 2:
        return cells, ""
    like = cells[(cells["page_size"] == page_size) & (cells["varied"] == varied)]
    pages = [f"page size {page_size}"] if cells["page_size"].nunique() > 1 else []
    return like, ", ".join([*pages, *([str(varied)] if varied else [])])


def _sentence(workload: str, where: str, key: str, bound: float, cells: pd.DataFrame) -> str:
    name = short_name(key)
    best = cells.loc[cells["sustained"].idxmax()]
    baseline = cells.loc[_baseline(cells)]
    setting = f"{workload}, {where}" if where else workload
    head = (
        f"On {setting}, {_label(best, cells)} sustains a {name} of {best['sustained']:.4g} within "
        f"{bound:g} ms/token{_bracket(best, name)}"
    )
    if best.name == baseline.name:
        return f"{head}; nothing that it is compared with sustains more."
    found = _difference(best, baseline)
    return (
        f"{head}, against {baseline['sustained']:.4g} under {_label(baseline, cells)}"
        f"{_ratio(best, baseline)}: {_in_words(found)}."
    )


def _baseline(cells: pd.DataFrame) -> int:
    """The first that reserves the bound in one piece, else the first contiguous, else the first."""
    contiguous = cells[cells["allocator"] == "contiguous"]
    bound = contiguous[contiguous["expected"] == "max"]
    chosen = next(each for each in (bound, contiguous, cells) if len(each))
    return int(chosen.index[0])


def _label(cell: pd.Series, cells: pd.DataFrame) -> str:
    strategy = str(cell["strategy"])
    alone = int((cells["strategy"] == strategy).sum()) == 1
    return strategy if alone or not cell["varied"] else f"{strategy} ({cell['varied']})"


def _bracket(cell: pd.Series, name: str) -> str:
    if not math.isfinite(cell["unsustained"]):
        return f" (the highest {name} that was tried)"
    return f" ({cell['unsustained']:.4g} is not sustained)"


def _ratio(best: pd.Series, baseline: pd.Series) -> str:
    if not baseline["sustained"]:
        return ""
    return f", {best['sustained'] / baseline['sustained']:.2f} times as much"


def _difference(best: pd.Series, baseline: pd.Series) -> Comparison:
    paired = paired_differences(best["by_seed"], baseline["by_seed"])
    return compare([paired], higher_is_better=True)[0]


def _in_words(found: Comparison) -> str:
    mean, half_width, n = found.difference
    seeds = "seed" if n == 1 else "seeds"
    if math.isfinite(half_width):
        shown = f"{mean:.3g} ± {half_width:.2g} more"
        return f"{shown} (95 % interval, n = {n} {seeds}): {found.verdict}"
    return f"n = {n} {seeds}, no interval below 5: {found.verdict}"

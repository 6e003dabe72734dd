"""The comparison's rows together with the runs behind them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.tables import CONDITIONS, Table, TableRow, make_tables
from harness.runs.jobs import Job
from harness.runs.varied_settings import varied_settings

MAX_SHOWN = 9
"""Strategies that a figure with a line or a panel for each can show."""

PREFERRED_PAGE_SIZE = "16"

CLOSED = ("all_at_once", "closed_loop")
"""Arrivals under which a latency says how long the queue was, and throughput what is served."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a table.

    settings: what beside the strategy tells it apart, by name, as text. conditions: those values of
    them that a strategy is up against, as load and pool. rows: its complete repetitions, as from
    `collect_rows`.
    """

    row: TableRow
    settings: tuple[tuple[str, str], ...]
    rows: pd.DataFrame
    conditions: tuple[str, ...] = ()

    @property
    def strategy(self) -> str:
        return self.row.labels[0]


@dataclass(frozen=True, slots=True)
class Group:
    """A table: runs of one part, workload and executor.

    has_times: its latencies mean something. is_open_loop: requests come at times of their own.
    answering: of a search, the runs at what was sustained; empty of anything else.
    """

    table: Table
    cells: tuple[Cell, ...]
    rows: pd.DataFrame
    has_times: bool
    is_open_loop: bool
    answering: frozenset[str] = frozenset()

    @property
    def complete(self) -> tuple[Cell, ...]:
        """Cells of which at least one run went well."""
        return tuple(cell for cell in self.cells if len(cell.rows))

    @property
    def varied(self) -> frozenset[str]:
        """Names of the settings that differ between the group's cells."""
        return varied_between(self.cells)


def varied_between(cells: Sequence[Cell]) -> frozenset[str]:
    """Names of the settings that are not the same in all of `cells`."""
    seen: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in cell.settings:
            seen.setdefault(name, set()).add(value)
    return frozenset(name for name, values in seen.items() if len(values) > 1)


def labels_of(cells: Sequence[Cell]) -> list[str]:
    """For each of `cells` what tells it apart from the others, in words."""
    varied = varied_between(cells)
    return [
        " · ".join([cell.strategy, *([said] if (said := in_words(cell.settings, varied)) else [])])
        for cell in cells
    ]


def make_groups(
    rows: pd.DataFrame, jobs: Sequence[Job], answering: Collection[str] = ()
) -> list[Group]:
    """The groups that `make_tables` has a table for, in its order. answering: runs that searches
    ended with."""
    arrivals = {job.run_id: job.config.workload.arrivals for job in jobs}
    groups = []
    for table in make_tables(rows, jobs):
        ids = {run_id for row in table.rows for run_id in row.run_ids}
        own = rows[(rows["part"] == table.part) & rows["run_id"].isin(ids)]
        keys = tuple(varied_settings([job for job in jobs if job.run_id in ids]))
        cells = tuple(_cell(table, row, own, keys) for row in table.rows)
        is_constant = (own["executor"] == "simulated") & (own["cost"] == "constant")
        is_open_loop = not {arrivals[run_id] for run_id in ids} & set(CLOSED)
        has_times = not bool(is_constant.all())
        ended = frozenset(ids.intersection(answering))
        groups.append(Group(table, cells, own, has_times, is_open_loop, ended))
    return groups


def representatives(group: Group) -> tuple[tuple[Cell, ...], str]:
    """The cells to draw one by one, at most MAX_SHOWN, and a sentence where some are left out.

    Of a search, what each cell sustained. Where there are too many, each strategy is shown at one
    setting that as many as possible have: pages of 16 if it can be.
    """
    cells = answering_cells(group)
    which = "the first" if len(cells) == len(group.complete) else "of what was sustained"
    if len(cells) > MAX_SHOWN and (settings := common_settings(cells)):
        cells = tuple(cell for cell in cells if cell.settings == settings)
        where = in_words(settings, group.varied)
        which = f"those at {where}" if where else "the first"
    chosen = cells[:MAX_SHOWN]
    if len(chosen) == len(group.complete):
        return chosen, ""
    return chosen, f"{len(chosen)} of {len(group.complete)} rows are drawn: {which}."


def answering_cells(group: Group) -> tuple[Cell, ...]:
    """The complete cells, of a search only those at what was sustained."""
    ended = [cell for cell in group.complete if group.answering.intersection(cell.row.run_ids)]
    return tuple(ended) or group.complete


def common_settings(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...] | None:
    """The settings that most strategies have; of several, with pages of 16, else the first. None
    where no two strategies share any."""
    strategies: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for cell in cells:
        strategies.setdefault(cell.settings, set()).add(cell.strategy)
    most = max((len(found) for found in strategies.values()), default=0)
    if most < 2:
        return None
    best = [settings for settings, found in strategies.items() if len(found) == most]
    at_16 = [each for each in best if dict(each).get("page size") == PREFERRED_PAGE_SIZE]
    return (at_16 or best)[0]


def in_words(settings: tuple[tuple[str, str], ...], varied: frozenset[str]) -> str:
    """Those of `settings` that are `varied`: `page size 16, fit buddy`."""
    return ", ".join(f"{name} {value}" for name, value in settings if name in varied)


def _cell(table: Table, row: TableRow, rows: pd.DataFrame, keys: Sequence[str]) -> Cell:
    """keys: of the settings in `table`, in its order."""
    own = rows[rows["run_id"].isin(row.run_ids)]
    page_size = str(own["page_size"].iloc[0])
    others = zip(table.label_heads[2:], row.labels[2:], strict=True)
    complete = own[own["status"] == "complete"]
    values = zip(keys, row.labels[2:], strict=True)
    conditions = tuple(value for key, value in values if key.startswith(CONDITIONS))
    return Cell(row, (("page size", page_size), *others), complete, conditions)

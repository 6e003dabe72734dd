"""Hit rate, goodput and balance of a fleet over its size, by router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.table import Table

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.line_panels import (
    PALETTE,
    Look,
    Panel,
    draw_lines,
    from_zero,
    line_handles,
    looks_of,
    memory_note,
    power_ticks,
)
from experiments.other_settings import other_settings
from experiments.plotting import jobs_of, means, save
from harness.runs.jobs import Job

ROUTER_LOOKS: Mapping[str, Look] = {
    "round_robin": Look(PALETTE[0], "o"),
    "least_loaded": Look(PALETTE[4], "^", "--"),
    "prefix_aware": Look(PALETTE[2], "s"),
}
OTHER_ROUTERS = (Look(PALETTE[5], "X"), Look(PALETTE[3], "P"), Look(PALETTE[7], "*"))
OTHER_GUARDS = (Look(PALETTE[1], "D", "--"), Look(PALETTE[3], "P", ":"), Look(PALETTE[5], "X"))
NO_CACHE = Look(PALETTE[6], "v", ":")

NAMED = ("cluster.replicas", "cluster.router", "cluster.balance_abs_threshold")
"""Keys that lines are drawn over or named by."""

LOADS = {"per_replica": " at the same rate a replica", "total": " at the same rate of the fleet"}


class Shown(NamedTuple):
    """A column of the table. head: with its unit. scale: factor from the metric."""

    metric: str
    head: str
    scale: float
    digits: int


SHOWN = (
    Shown("prefix_hit_rate", "hit\nrate %", 100.0, 1),
    Shown("goodput_each", "goodput\n1/s a replica", 1.0, 0),
    Shown("ttft_ms", "TTFT\nms", 1.0, 0),
    Shown("ttft_p99_ms", "TTFT\np99 ms", 1.0, 0),
    Shown("request_imbalance", "requests\nmost/mean", 1.0, 2),
    Shown("busy_imbalance", "busy time\nmost/mean", 1.0, 2),
    Shown("saturated_share", "satu-\nrated %", 100.0, 0),
)

PANELS = (
    Panel("prefix_hit_rate", "prompt tokens found\nin the cache, %", 100.0),
    Panel("goodput_each", "goodput,\nrequests/s a replica"),
    Panel("ttft_p99_ms", "TTFT p99, ms"),
    Panel("request_imbalance", "requests of the replica\nthat has most / mean"),
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`fleet`, where there are fleets of several sizes."""
    rows = _by_line(rows, jobs)
    if rows.empty or rows["replicas"].nunique() < 2:
        return []
    points = means(rows, ["workload", "line", "replicas"], [panel.metric for panel in PANELS])
    looks = _looks(rows)
    with style.context():
        figure, (grid,) = subplots(style, 1, len(PANELS), PanelSize(3.0, 2.6))
        for axes, panel in zip(grid, PANELS, strict=True):
            draw_lines(axes, points, "replicas", "line", panel, looks)
            power_ticks(axes, points["replicas"], base=10)
            axes.set_xlabel("replicas")
        from_zero(list(grid))
        workload = ", ".join(dict.fromkeys(points["workload"]))
        title = f"{workload}{_load(rows, jobs)} (simulated): {memory_note(rows)}"
        arrange(figure, style, title=title, handles=line_handles(looks))
        return save(figure, "fleet", folder, points, jobs_of(rows, jobs))


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Table | None:
    """A row a router and size of the fleet; None without fleets."""
    rows = _by_line(rows, jobs)
    if rows.empty:
        return None
    table = Table(
        title="Means of each replica's share of a fleet, by router", box=None, title_justify="left"
    )
    for head in ("router", "replicas"):
        table.add_column(head, justify="left" if head == "router" else "right")
    for column in SHOWN:
        table.add_column(column.head, justify="right")
    metrics = [column.metric for column in SHOWN]
    points = means(rows, ["line", "replicas"], metrics).sort_values("replicas", kind="stable")
    for line, of_line in points.groupby("line", sort=False):
        for place, (_, point) in enumerate(of_line.iterrows()):
            shown = [f"{c.scale * point[c.metric]:,.{c.digits}f}" for c in SHOWN]
            table.add_row("" if place else str(line), f"{point['replicas']:,.0f}", *shown)
    return table


def _by_line(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Complete runs of fleets, by line; goodput of a replica. Empty where there are none."""
    rows = rows[rows["status"] == "complete"]
    if "replicas" not in rows or rows["replicas"].isna().all():
        return rows.iloc[:0]
    rows = rows.assign(
        replicas=rows["replicas"].fillna(1).astype(int),
        rest=other_settings(rows, jobs, lambda key: not key.startswith("cluster.")),
        of_router=other_settings(rows, jobs, _is_of_router),
    )
    rows = _with_single_replicas(rows.assign(line=_lines(rows)))
    return rows.assign(goodput_each=rows["goodput_requests_per_s"] / rows["replicas"])


def _load(rows: pd.DataFrame, jobs: Sequence[Job]) -> str:
    """What fleets of several sizes have in common; nothing where they differ in it."""
    fleets = [job.config.cluster for job in jobs_of(rows, jobs)]
    loads = {cluster.load for cluster in fleets if cluster.replicas > 1}
    return LOADS[loads.pop()] if len(loads) == 1 else ""


def _is_of_router(key: str) -> bool:
    return key.startswith("cluster.") and key not in NAMED


def _lines(rows: pd.DataFrame) -> list[str]:
    """Router, with its guard where runs differ in it, the strategy where it has no cache, and
    whatever else runs differ in."""
    by_prefix = rows["router"] == "prefix_aware"
    shows_guard = rows.loc[by_prefix, "balance_abs_threshold"].nunique() > 1
    several = rows["strategy"].nunique() > 1
    names = []
    for _, row in rows.iterrows():
        name = str(row["router"])
        if shows_guard and name == "prefix_aware":
            name += f", guard {row['balance_abs_threshold']:g}"
        if several and row["strategy"] != "paged_prefix":
            name = f"{row['strategy']}, {name}"
        names.append(", ".join(each for each in (name, row["of_router"], row["rest"]) if each))
    return names


def _with_single_replicas(rows: pd.DataFrame) -> pd.DataFrame:
    """Every line begins at one replica, for which there is nothing to route: the same runs."""
    single, fleets = rows[rows["replicas"] == 1], rows[rows["replicas"] > 1]
    parts = [fleets]
    for (line, strategy, rest), of_line in fleets.groupby(["line", "strategy", "rest"], sort=False):
        same = single[(single["strategy"] == strategy) & (single["rest"] == rest)]
        parts.append(same.assign(line=line, router=of_line["router"].iloc[0]))
    return pd.concat(parts, ignore_index=True)


def _looks(rows: pd.DataFrame) -> dict[str, Look]:
    looks: dict[str, Look] = {}
    others = [name for name in dict.fromkeys(rows["router"]) if name not in ROUTER_LOOKS]
    known = {**ROUTER_LOOKS, **dict(zip(others, 3 * OTHER_ROUTERS, strict=False))}
    for (router, strategy), of_pair in rows.groupby(["router", "strategy"], sort=False):
        for place, line in enumerate(dict.fromkeys(of_pair["line"])):
            if strategy == "paged":
                looks[line] = NO_CACHE
            else:
                looks[line] = OTHER_GUARDS[(place - 1) % 3] if place else known[str(router)]
    is_clear = len(set(looks.values())) == len(looks)
    return looks if is_clear else dict(looks_of(list(looks)))

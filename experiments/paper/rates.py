"""Normalised latency over request rate, and the highest rates that systems sustain: what most of
the PagedAttention paper's figures are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper.systems import SYSTEMS, handles, in_order, line_look, with_systems
from experiments.plotting import jobs_of, means, save
from experiments.sustained_rate import sustained_rates
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

AXIS_TOP_S = 1.0
"""Seconds a token up to which latency is drawn, as in the paper."""


CLAIM_COLOUR = "#CFE3F2"


class RateFigure(NamedTuple):
    """name: of the files. part: of the rows. keys: columns that tell panels apart. title: of a
    panel, from its keys' values. label: of the axis of rates. columns: panels side by side.
    claims: by panel, a baseline and the range of multiples of its rate that paging sustains in
    the paper.
    """

    name: str
    part: str
    keys: tuple[str, ...]
    titles: Mapping[tuple[object, ...], str]
    label: str = "requests/s"
    columns: int = 3
    claims: Mapping[tuple[object, ...], tuple[str, float, float]] = {}


def highest_rates(rows: pd.DataFrame, jobs: Sequence[Job], figure: RateFigure) -> pd.DataFrame:
    """A line a panel and system: the figure's keys, `system`, and `sustained`, `unsustained`,
    `by_seed` and `bound_ms` as in `sustained_rates`. Empty without runs of the figure."""
    lines = []
    for place, group in _groups(rows, jobs, figure):
        found = sustained_rates(group, jobs_of(group, jobs))
        if len(found) == 1:
            kept = found.loc[0, ["sustained", "unsustained", "by_seed", "bound_ms"]].to_dict()
            names = (*figure.keys, "system")
            lines.append({**dict(zip(names, place, strict=True)), **kept})
    return pd.DataFrame(lines, columns=[*figure.keys, "system", *_FOUND])


_FOUND = ("sustained", "unsustained", "by_seed", "bound_ms")


def rate_ratio(rates: pd.DataFrame, system: str, base: str) -> Interval:
    """How many times the requests/s of `base` `system` sustains. rates: of one panel, as from
    `highest_rates`; NaN where either is missing or sustains none. Without an interval: what a
    search finds for one seed is read off the probes that the majority of seeds chose."""
    found = rates.set_index("system")[["sustained", "by_seed"]]
    if system not in found.index or base not in found.index:
        return Interval(math.nan, math.nan, 0)
    own, other = float(found.at[system, "sustained"]), float(found.at[base, "sustained"])
    ratio = own / other if own > 0 and other > 0 else math.nan
    return Interval(ratio, math.nan, len(found.at[system, "by_seed"]))


def draw(
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    folder: Path,
    figure: RateFigure,
    style: FigureStyle = DEFAULT,
) -> list[Path]:
    """Panels of normalised latency over the rate, a line a system. Points at rates that a system
    does not sustain are hollow: latency there grows with the length of the run."""
    points = _points(rows, jobs, figure)
    if points.empty:
        return []
    titles = [title for title in figure.titles.values() if title in set(points["panel"])]
    with style.context():
        panel = PanelSize(3.1, 2.5)
        drawing, grid = subplots(style, 1, len(titles), panel, sharey=True, most=figure.columns)
        claimed = _claimed(highest_rates(rows, jobs, figure), figure)
        for axes, title in zip(grid[0], titles, strict=True):
            _draw_panel(axes, points[points["panel"] == title], title, claimed.get(title))
            axes.set_ylabel("normalised latency,\ns/token")
            axes.set_xlabel(figure.label)
        entries: list[Line2D | Patch] = [*handles(points["system"])]
        entries.append(
            Line2D([], [], color="#666666", marker="o", fillstyle="none", linestyle="none",
                   label="not sustained: grows with the run")
        )  # fmt: skip
        if claimed:
            entries.append(Patch(color=CLAIM_COLOUR, label=figure_claim(figure)))
        arrange(drawing, style, handles=entries)
        chosen = rows[rows["part"] == figure.part]
        return save(drawing, figure.name, folder, points, jobs_of(chosen, jobs))


def _groups(
    rows: pd.DataFrame, jobs: Sequence[Job], figure: RateFigure
) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    chosen = rows[rows["part"] == figure.part]
    if chosen.empty:
        return []
    chosen = with_systems(chosen, jobs)
    found = chosen.groupby([*figure.keys, "system"], sort=False, dropna=False)
    return [(place, group) for place, group in found if place[:-1] in figure.titles]


def _points(rows: pd.DataFrame, jobs: Sequence[Job], figure: RateFigure) -> pd.DataFrame:
    rates = highest_rates(rows, jobs, figure)
    sustained = {
        tuple(line[key] for key in (*figure.keys, "system")): line["sustained"]
        for line in rates.to_dict("records")
    }
    parts = []
    for place, group in _groups(rows, jobs, figure):
        line = means(group, ["rate"], ["normalised_latency_ms"]).sort_values("rate")
        parts.append(
            line.assign(
                panel=figure.titles[place[:-1]], system=place[-1],
                sustained=line["rate"] <= sustained.get(place, math.inf),
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["panel"])


def figure_claim(figure: RateFigure) -> str:
    """What the shaded stretch of a panel means."""
    bases = {SYSTEMS[base].label for base, _, _ in figure.claims.values()}
    return f"the paper's multiple of what {' and '.join(sorted(bases))} sustains here"


def _claimed(rates: pd.DataFrame, figure: RateFigure) -> dict[str, tuple[float, float]]:
    """By panel, between which requests/s paging would lie if the paper's multiple held."""
    found: dict[str, tuple[float, float]] = {}
    for place, (base, low, high) in figure.claims.items():
        line = rates[rates["system"] == base]
        for key, value in zip(figure.keys, place, strict=True):
            line = line[line[key] == value]
        if len(line) == 1:
            rate = float(line["sustained"].iloc[0])
            found[figure.titles[place]] = low * rate, high * rate
    return found


def _draw_panel(
    axes: Axes, points: pd.DataFrame, title: str, claimed: tuple[float, float] | None
) -> None:
    if claimed is not None:
        low, high = claimed
        width = max(high - low, 0.01 * high)  # a single number is a line
        axes.axvspan(low, low + width, color=CLAIM_COLOUR, linewidth=0, zorder=0)
    for system in in_order(points["system"]):
        line = points[points["system"] == system]
        look = line_look(system)
        seconds = line["normalised_latency_ms"] / 1e3
        axes.plot(line["rate"], seconds, **{**look, "marker": "none"})
        for held, fill in ((True, "full"), (False, "none")):
            shown = line["sustained"] == held
            axes.plot(
                line["rate"][shown], seconds[shown],
                **{**look, "linestyle": "none"}, fillstyle=fill, clip_on=True,
            )  # fmt: skip
    axes.set_ylim(0, AXIS_TOP_S)
    axes.set_xlim(left=0)
    axes.set_title(title)

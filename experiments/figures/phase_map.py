"""Where in load, spread of lengths and burstiness the choice of an allocator changes goodput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from rich.text import Text

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.paired import (
    against,
    excludes,
    slo_in_words,
    with_attainment,
    with_placement,
    with_settings,
)
from experiments.plotting import jobs_of, means, save
from harness.measure.statistics import compare
from harness.runs.jobs import Job

SETTINGS = {
    "spread": "workload.output_cv",
    "burstiness": "workload.burstiness",
}
CELL = ["spread", "burstiness", "rate"]
COLOURS = "PuOr"


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`phase_map`: what paging adds to the share of requests within the SLO, a cell each."""
    rows = with_settings(rows[rows["status"] == "complete"], jobs, SETTINGS)
    cells = _cells(rows)
    if cells.empty:
        return []
    estimates = list(dict.fromkeys(cells["expected"]))
    bursts = sorted(cells["burstiness"].unique(), reverse=True)
    scale = Normalize(-100, 100)
    with style.context():
        size = PanelSize(3.2, 2.6)
        figure, grid = subplots(style, len(estimates), len(bursts), size, sharex=True, sharey=True)
        for line, expected in zip(grid, estimates, strict=True):
            for axes, burstiness in zip(line, bursts, strict=True):
                of_panel = (cells["expected"] == expected) & (cells["burstiness"] == burstiness)
                _draw_map(axes, cells[of_panel], cells, scale)
                axes.set_title(f"{_fit_name(cells)}, {expected}; {_burst_name(burstiness)}")
                axes.set_ylabel("rate / paging's capacity")
                axes.set_xlabel("spread of lengths (CV)")
        is_below = style.width_in is not None
        bar = figure.colorbar(
            ScalarMappable(scale, COLOURS), ax=grid, location="bottom" if is_below else "right",
            shrink=0.8, aspect=30 if is_below else 20,
        )  # fmt: skip
        bar.set_label("paged less contiguous,\npoints of requests within the SLO")
        title = f"What paging adds to goodput (simulated; {slo_in_words(jobs_of(rows, jobs))})"
        hatched = Patch(
            facecolor="white", edgecolor="#777777", hatch="////", linewidth=0,
            label="within noise: the cell's paired 95 % interval includes 0",
        )  # fmt: skip
        bold = Line2D(
            [], [], linestyle="none", label="bold: also with all of a map together (Holm)"
        )
        arrange(figure, style, title=title, handles=[hatched, bold])
        return save(figure, "phase_map", folder, cells, jobs_of(rows, jobs))


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Text | None:
    """The findings, a line each; None where these rows hold none."""
    lines = findings(rows, jobs)
    return Text("\n".join(lines)) if lines else None


def findings(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """In how many cells paging helps, harms, or does neither, and from which load on."""
    cells = _cells(with_settings(rows[rows["status"] == "complete"], jobs, SETTINGS))
    lines = []
    for expected, own in cells.groupby("expected", sort=False) if len(cells) else ():
        helps, harms = (own[own["verdict"] == word] for word in ("better", "worse"))
        line = (
            f"against {_fit_name(own)}, {expected}: paging puts more requests within the SLO in "
            f"{len(helps)} of {len(own)} cells, fewer in {len(harms)}, all tested together; seeds "
            "do not separate the others"
        )
        if len(helps):
            low, top = helps["load"].min(), helps.sort_values("points").iloc[-1]
            line += (
                f". The first is at {low:.2f} of paging's capacity; the most, "
                f"{top['points']:.0f} points, at {top['load']:.2f}, CV {top['spread']:g} and "
                f"burstiness {top['burstiness']:g}"
            )
        lines.append(line)
    return lines


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and contiguous strategy. points: attainment under paging less its own, in
    percent of all requests; differs: its paired interval excludes 0; verdict: with all cells of
    the strategy's map tested together; load: rate over what paging sustained at this spread in the
    part `capacity`, NaN without it."""
    rows = with_placement(with_attainment(rows))
    compared = rows[rows["part"] == "map"]
    if compared.empty:
        return compared
    # the reference is paging, so that what it adds is what the other one lacks
    compared = against(compared, compared["placement"] == "paged", CELL, ["attainment"])
    compared = compared.assign(points=-100 * compared["attainment_gain"])
    compared = compared[(compared["placement"] != "paged") & compared["points"].notna()]
    maps = [_with_verdicts(own) for _, own in compared.groupby("expected", sort=False)]
    if not maps:
        return compared
    sustained = rows[rows["part"] == "capacity"].groupby("spread")["requests_per_s"].mean()
    cells = pd.concat(maps, ignore_index=True)
    return cells.assign(load=cells["rate"] / cells["spread"].map(sustained))


def _with_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["placement", "expected", *CELL]
    family = [own["points"].to_numpy() for _, own in rows.groupby(keys, sort=False)]
    comparisons = compare(family, higher_is_better=True)
    return means(rows, keys, ["points", "saturated_share"]).assign(
        differs=[excludes(each.difference, 0) for each in comparisons],
        verdict=[each.verdict for each in comparisons],
    )


def _draw_map(axes: Axes, own: pd.DataFrame, cells: pd.DataFrame, scale: Normalize) -> None:
    spreads = sorted(cells["spread"].unique())
    levels = _levels(cells)
    colours = colormaps[COLOURS]
    for _, cell in own.iterrows():
        x, y = spreads.index(cell["spread"]), levels[cell["spread"]].index(cell["rate"])
        shade = colours(scale(cell["points"]))
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor="white" if cell["differs"]
                else "#AAAAAA", hatch="" if cell["differs"] else "////", linewidth=0.6,
            )
        )  # fmt: skip
        dark = abs(cell["points"]) > 60
        text = axes.annotate(
            f"{round(cell['points']):+d}", (x, y), ha="center", va="center", fontsize=note_size(),
            color="white" if dark else "black",
            fontweight="bold" if cell["verdict"] in ("better", "worse") else "normal",
        )  # fmt: skip
        if not cell["differs"]:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(spreads) - 0.5)
    axes.set_ylim(-0.5, max(map(len, levels.values())) - 0.5)
    axes.set_xticks(range(len(spreads)), [f"{spread:g}" for spread in spreads])
    axes.set_yticks(*_load_ticks(cells, levels))
    axes.tick_params(length=0)


def _levels(cells: pd.DataFrame) -> dict[float, list[float]]:
    """The rates of each spread in order: rows of the map."""
    return {float(spread): sorted(own["rate"].unique()) for spread, own in cells.groupby("spread")}


def _load_ticks(
    cells: pd.DataFrame, levels: dict[float, list[float]]
) -> tuple[list[int], list[str]]:
    """A row's load: one figure, or its range over the spreads where they differ."""
    loads = cells.groupby(["spread", "rate"])["load"].first()
    ticks, labels = [], []
    for y in range(max(map(len, levels.values()))):
        own = [loads[spread, rates[y]] for spread, rates in levels.items() if y < len(rates)]
        low, high = min(own), max(own)
        ticks.append(y)
        labels.append(f"{low:.2f}" if high - low < 0.015 else f"{low:.2f}\nto {high:.2f}")
    return ticks, labels


def _burst_name(burstiness: float) -> str:
    return f"CV of gaps {burstiness**-0.5:.2g}"


def _fit_name(cells: pd.DataFrame) -> str:
    return str(cells["placement"].iloc[0]).replace("_", " ")

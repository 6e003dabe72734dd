"""Batched requests and sustained rates over the host's time, which the paper does not give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper import rates as paper_rates
from experiments.paper.quantities import published_numbers
from experiments.paper.systems import SYSTEMS, handles, in_order, line_look, with_systems
from experiments.plotting import jobs_of, means, save, thin_line
from experiments.windows import Window, with_window
from harness.runs.jobs import Job

WINDOWS = {"sharegpt": Window(100.0, 200.0), "alpaca_like": Window(30.0, 60.0)}
TITLES = {"sharegpt": "ShareGPT at 2 requests/s", "alpaca_like": "Alpaca-like at 30 requests/s"}
HOST = "host_us_per_sequence"

RATES = paper_rates.RateFigure("", "host_rates", (HOST,), {})


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_host_time`: batched requests with the paper's as dotted lines, and sustained rates."""
    batched = batched_requests(rows, jobs)
    rates = sustained(rows, jobs)
    if batched.empty or rates.empty:
        return []
    with style.context():
        figure, ((*panels, last),) = subplots(style, 1, 3, PanelSize(3.2, 2.6))
        for axes, workload in zip(panels, WINDOWS, strict=True):
            _draw_batched(axes, batched[batched["workload"] == workload], workload)
        for system in in_order(rates["system"]):
            line = rates[rates["system"] == system]
            last.plot(line[HOST] / 1e3, line["sustained"], **line_look(system))
        last.set_ylabel("highest sustained rate, requests/s")
        last.set_title("ShareGPT")
        for axes in (*panels, last):
            axes.set_xlabel("host's time, ms a sequence and step")
            axes.set_ylim(bottom=0)
        entries = handles({*batched["system"], *rates["system"]})
        entries.append(Line2D([], [], color="#666666", linestyle=":", label="the paper's"))
        arrange(figure, style, handles=entries)
        points = pd.concat([batched, rates.drop(columns="by_seed")], ignore_index=True)
        chosen = rows[rows["part"].isin(["host_batched", "host_rates"])]
        return save(figure, "paper_host_time", folder, points, jobs_of(chosen, jobs))


def batched_requests(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Mean batched requests within the window: a line a workload, system and host's time."""
    chosen = rows[rows["part"] == "host_batched"]
    if chosen.empty:
        return pd.DataFrame()
    chosen = with_systems(chosen, jobs)
    parts = [
        with_window(group, jobs, WINDOWS[str(workload)])
        for workload, group in chosen.groupby("workload", sort=False)
    ]
    found = pd.concat(parts).rename(
        columns={"window_batched": "batched", "window_queued": "queued"}
    )
    return means(found, ["workload", "system", HOST], ["batched", "queued"])


def sustained(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """The highest sustained rate: a line a system and host's time."""
    chosen = rows[rows["part"] == RATES.part]
    if chosen.empty:
        return pd.DataFrame()
    values = sorted(set(with_systems(chosen, jobs)[HOST]))
    figure = RATES._replace(titles={(value,): f"{value:g}" for value in values})
    return paper_rates.highest_rates(rows, jobs, figure).sort_values(HOST, kind="stable")


def _draw_batched(axes: Axes, points: pd.DataFrame, workload: str) -> None:
    theirs = published_numbers()["fig13_batched_requests"][workload]
    for system in in_order(points["system"]):
        look = SYSTEMS[system]
        line = points[points["system"] == system]
        axes.errorbar(
            line[HOST] / 1e3, line["batched"], yerr=line["batched_ci"].fillna(0), capsize=2,
            **line_look(system),
        )  # fmt: skip
        axes.axhline(
            theirs[look.published],
            color=look.colour,
            linestyle=":",
            linewidth=thin_line(),
        )
    axes.set_title(TITLES[workload])
    axes.set_ylabel("batched requests")

"""How much of the KV memory holds tokens (PagedAttention, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.figure_layout import PanelSize, arrange
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper.bars import PAPER_CLASSES, PaperBars, paper_class_handles
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.paper.systems import SYSTEMS, in_order, with_systems
from experiments.plotting import jobs_of, means, save
from experiments.windows import Window, with_window
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

WINDOW = Window(300.0, 900.0)
"""Of the artifact: the time before is warm-up."""


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig2`: bars by class, the paper's beside ours."""
    points = shares(rows, jobs)
    if points.empty:
        return []
    systems = in_order(points["system"])
    ours = points.set_index("system")[list(PAPER_CLASSES)]
    theirs = _published().reindex(systems)
    has_paper = np.array([bool(SYSTEMS[system].published) for system in systems])
    x = np.arange(len(systems), dtype=float)
    with style.context():
        bars = PaperBars(style, [SYSTEMS[name].label.replace(" (", "\n(") for name in systems])
        figure, axes = bars.subplots(PanelSize(0.6 + 1.1 * len(systems), 3.2))
        of_paper = [system for system in systems if SYSTEMS[system].published]
        bars.stack(axes, x[has_paper] - 0.2, theirs.loc[of_paper], "paper")
        bars.stack(axes, x + np.where(has_paper, 0.2, 0.0), ours.loc[systems], "here")
        bars.label(axes, "KV memory, %")
        when = f"{WINDOW.from_s:g} to {WINDOW.to_s:g} s"
        title = f"Fig. 2: OPT-13B, ShareGPT at 4 requests/s, {when}"
        arrange(figure, style, title=title, handles=paper_class_handles(), beside=True)
        plotted = pd.concat(
            [points.assign(source="here"),
             theirs.loc[of_paper].reset_index(names="system").assign(source="paper")],
            ignore_index=True,
        )  # fmt: skip
        chosen = _chosen(rows, jobs)
        return save(figure, "paper_fig2", folder, plotted, jobs_of(chosen, jobs))


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """Each class of each of the paper's systems that it gives a number for."""
    points = shares(rows, jobs).set_index("system") if len(_chosen(rows, jobs)) else pd.DataFrame()
    theirs = _published()
    return [
        Quantity(
            "2",
            f"{SYSTEMS[system].label}, {PAPER_CLASSES[name][0]}",
            "%",
            float(str(theirs.loc[system, name])),
            Interval(
                points.loc[system, name], points.loc[system, f"{name}_ci"],
                int(points.loc[system, "repetitions"]),
            ),
            reason("fig2"),
        )
        for system in theirs.index
        if system in points.index
        for name in PAPER_CLASSES
        if theirs.loc[system, name] == theirs.loc[system, name]
    ]  # fmt: skip


def shares(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """Percent of the pool by class over `WINDOW`: a line a system, means with intervals, and
    `batched` requests. Empty without runs of this figure."""
    chosen = _chosen(rows, jobs)
    if chosen.empty:
        return pd.DataFrame(columns=["system", *PAPER_CLASSES])
    found = with_window(chosen, jobs, WINDOW)
    for name in PAPER_CLASSES:
        found[name] = 100 * found[f"window_{name}"]
    found = found.rename(columns={"window_batched": "batched", "window_queued": "queued"})
    return means(found, ["system"], [*PAPER_CLASSES, "batched", "queued"])


def _chosen(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    rows = rows[rows["part"] == "fig2"]
    return with_systems(rows, jobs) if len(rows) else rows


def _published() -> pd.DataFrame:
    """The paper's percentages, a line a system."""
    theirs = pd.DataFrame(published_numbers()["fig2_memory_percent"]).T
    names = {look.published: system for system, look in SYSTEMS.items() if look.published}
    return theirs.rename(index=names)

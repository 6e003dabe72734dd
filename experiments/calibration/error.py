"""How far simulated runs are from the real ones that they foretell: a table and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.figure_style import DEFAULT
from experiments.line_panels import PALETTE
from experiments.plotting import save
from experiments.table_output import markdown_cell
from harness.runs.jobs import Job, strategy_label
from harness.runs.store import RunStore, StoredRun


class Goal(NamedTuple):
    """A metric, its name for people, and the error, in percent, that it is to stay under."""

    metric: str
    label: str
    percent: float


GOALS = (
    Goal("output_tokens_per_s", "throughput", 5.0),
    Goal("normalised_latency_ms", "normalised latency", 5.0),
    Goal("ttft_ms", "TTFT", 5.0),
    Goal("itl_ms", "ITL", 5.0),
    Goal("normalised_latency_p99_ms", "normalised latency p99", 10.0),
    Goal("ttft_p99_ms", "TTFT p99", 10.0),
    Goal("itl_p99_ms", "ITL p99", 10.0),
)


WIDEST_PERCENT = 40.0
"""Of the figure's axes."""


class Pair(NamedTuple):
    """A real run and the simulated one of the same requests."""

    real: Job
    simulated: Job


def errors(pairs: Iterable[Pair]) -> pd.DataFrame:
    """A row a kind of run (workload, arrivals, strategy), over its seeds: mean of what was
    measured and of what was foretold, `METRIC_error` in percent of the measured one, and the
    share of steps that the fit had seen nothing like. Runs that failed are left out."""
    rows: list[dict[str, object]] = []
    for real, simulated in pairs:
        runs = [_complete(job) for job in (real, simulated)]
        if runs[0] is None or runs[1] is None:
            continue
        config = real.config
        rows.append(
            {
                "workload": config.workload.name,
                "arrivals": config.workload.arrivals,
                "strategy": strategy_label(config.allocator),
                "page_size": config.kv.page_size,
                **_figures(runs[0].summary, "measured"),
                **_figures(runs[1].summary, "simulated"),
                "extrapolated_share": _mean(runs[1].summary, "extrapolated_share"),
            }
        )
    if not rows:
        return pd.DataFrame()
    keys = ["workload", "arrivals", "strategy", "page_size"]
    frame = pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index()
    for goal in GOALS:
        measured = frame[f"{goal.metric}_measured"]
        frame[f"{goal.metric}_error"] = 100 * (frame[f"{goal.metric}_simulated"] / measured - 1)
    return frame


def _complete(job: Job) -> StoredRun | None:
    run = RunStore(job.root).find(job.run_id)
    return run if run is not None and run.status == "complete" else None


def _figures(summary: Sequence[Mapping[str, float]], suffix: str) -> dict[str, float]:
    return {f"{goal.metric}_{suffix}": _mean(summary, goal.metric) for goal in GOALS}


def _mean(summary: Sequence[Mapping[str, float]], metric: str) -> float:
    return float(np.mean([row[metric] for row in summary]))


def to_markdown(frame: pd.DataFrame) -> str:
    """The errors, signed, in percent; bold beyond their goal. The last row has the largest."""
    heads = ["workload", "arrivals", "strategy", "page", *(f"{g.label} %" for g in GOALS)]
    heads.append("extrapolated %")
    lines = [heads, ["---"] * 4 + ["---:"] * (len(GOALS) + 1)]
    for _, row in frame.iterrows():
        cells = [_signed(row[f"{goal.metric}_error"], goal) for goal in GOALS]
        labels = [row["workload"], row["arrivals"], row["strategy"], str(row["page_size"])]
        labels = list(map(markdown_cell, labels))
        lines.append([*labels, *cells, f"{100 * row['extrapolated_share']:.1f}"])
    worst = [_signed(_largest(frame[f"{goal.metric}_error"]), goal) for goal in GOALS]
    lines.append(["largest", "", "", "", *worst, f"{100 * frame['extrapolated_share'].max():.1f}"])
    lines.append(["goal", "", "", "", *(f"{goal.percent:g}" for goal in GOALS), ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _largest(values: pd.Series) -> float:
    return float(values.loc[values.abs().idxmax()])


def _signed(value: float, goal: Goal) -> str:
    text = f"{value:+.1f}"
    return text if abs(value) <= goal.percent else f"**{text}**"


def draw(frame: pd.DataFrame, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """`simulator_error`: a panel a metric, a dot a held-out run, the goal as a band."""
    frame = frame.iloc[::-1].reset_index(drop=True)
    colours = {
        workload: PALETTE[i] for i, workload in enumerate(dict.fromkeys(frame["workload"][::-1]))
    }
    with DEFAULT.context():
        figure, panels = plt.subplots(
            1, len(GOALS), sharey=True, figsize=(13, 1.4 + 0.3 * len(frame))
        )
        largest = max(frame[f"{goal.metric}_error"].abs().max() for goal in GOALS)
        bound = max(12.0, min(WIDEST_PERCENT, 1.2 * largest))
        for axes, goal in zip(panels, GOALS, strict=True):
            axes.axvspan(-goal.percent, goal.percent, color="#E8E8E8", zorder=0)
            axes.axvline(0, color="#4D4D4D", linewidth=0.8, zorder=1)
            for place, row in enumerate(frame.to_dict("records")):
                _dot(axes, row[f"{goal.metric}_error"], place, bound, colours[row["workload"]])
            axes.set_xlim(-1.1 * bound, 1.1 * bound)
            axes.set_xlabel("error, %")
            axes.set_title(goal.label, fontsize=8)
        labels = [
            f"{row['workload']}, {row['arrivals'].replace('_', ' ')}, {row['strategy']}"
            for _, row in frame.iterrows()
        ]
        panels[0].set_yticks(range(len(frame)), labels)
        figure.suptitle("Simulated beside measured, in runs that the calibration has not seen")
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        figure.text(0.01, 0.01, "Grey: the goal. Positive: the simulator says more.", fontsize=7)
        return save(figure, "simulator_error", folder, frame.iloc[::-1], jobs)


def _dot(axes: Axes, error: float, place: int, bound: float, colour: str) -> None:
    """An error beyond the axis is an arrow at its end, with the figure beside it."""
    if abs(error) <= bound:
        axes.plot(error, place, "o", color=colour, zorder=3)
        return
    side = 1 if error > 0 else -1
    axes.plot(side * bound, place, ">" if side > 0 else "<", color=colour, zorder=3)
    axes.annotate(
        f"{error:+.0f}", (side * bound, place), xytext=(-6 * side, 0), fontsize=7, va="center",
        textcoords="offset points", ha="right" if side > 0 else "left",
    )  # fmt: skip

"""Memory against goodput: all that was simulated, and the front of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from experiments.advice.points import pareto
from experiments.advice.search import FOLK_FRACTIONS
from experiments.figure_style import DEFAULT
from experiments.plotting import save
from harness.runs.jobs import Job

NAME = "front"
_FRONT, _ANSWER, _FOLK = "#0072B2", "#D55E00", "#999999"


def draw_front(
    table: pd.DataFrame,
    answer: pd.Series,
    target: float,
    arrivals_per_s: float,
    is_met: bool,
    jobs: Sequence[Job],
    folder: Path,
) -> list[Path]:
    """`front` in `folder`: goodput over the pool, with the answer and the memory fractions of folk
    advice at the answer's other knobs. table: rows of `points` at one load and one host."""
    front = pareto(table)
    with DEFAULT.context():
        figure, axes = plt.subplots(figsize=(5.6, 3.4))
        axes.plot(
            table["pool_gib"], table["goodput_per_s"], "o", color="#BBBBBB",
            markersize=4, markeredgewidth=0, label="simulated",
        )  # fmt: skip
        axes.plot(
            front["pool_gib"], front["goodput_per_s"], drawstyle="steps-post",
            color=_FRONT, marker="s", markersize=4, label="Pareto front",
        )  # fmt: skip
        axes.plot(
            [answer["pool_gib"]], [answer["goodput_per_s"]], "*", color=_ANSWER,
            markersize=13, zorder=5, label="answer" if is_met else "best found",
        )  # fmt: skip
        axes.set_ylim(0, 1.12 * max(arrivals_per_s, table["goodput_per_s"].max()))
        axes.set_xlim(left=0)
        for fraction in FOLK_FRACTIONS:
            at = table[table["memory_fraction"] == fraction]
            if len(at):
                x = float(at["pool_gib"].max())
                axes.axvline(x, color=_FOLK, linewidth=0.8, linestyle=":", zorder=0)
                axes.annotate(
                    f"{fraction:g}", (x, 1.0), xycoords=("data", "axes fraction"),
                    xytext=(0, 2), textcoords="offset points", ha="center", va="bottom",
                    fontsize=7, color="#555555",
                )  # fmt: skip
        axes.axhline(
            arrivals_per_s, color="#4D4D4D", linewidth=0.8, linestyle="--", label="arriving"
        )
        axes.set_xlabel("KV pool, GiB (dotted: share of the GPU's memory)")
        axes.set_ylabel(f"requests/s within the SLO\n(asked for: {target:.0%} of them)")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="upper center", ncol=4,
            bbox_to_anchor=(0.5, 0.0),
        )  # fmt: skip
        figure.tight_layout()
        shown = table.assign(on_front=table.index.isin(front.index))
        shown["is_answer"] = shown["run_id"] == answer["run_id"]
        return save(figure, NAME, folder, shown, jobs)

"""What an estimate of the output's length costs where it is too long, too short or scattered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from rich.text import Text

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.line_panels import (
    Look,
    Panel,
    draw_lines,
    from_zero,
    line_handles,
    looks_of,
    power_ticks,
)
from experiments.paired import (
    PLACEMENT_LABELS,
    PLACEMENTS,
    against,
    doubts,
    in_words,
    slo_in_words,
    with_placement,
)
from experiments.plotting import jobs_of, means, save, thin_line
from harness.measure.statistics import t_interval
from harness.runs.jobs import Job

KEYS = ["placement", "expected", "expected_bias", "expected_spread"]

CAPACITY, GOODPUT, RECOMPUTED = (
    Panel("output_tokens_per_s_ratio", "output tokens/s at capacity,\nof the oracle's"),
    Panel("goodput_requests_per_s_ratio", "goodput at a fixed rate,\nof the oracle's"),
    Panel("recomputed_per_token", "recomputed tokens per\noutput token, at capacity"),
)
PANELS = (("capacity", CAPACITY), ("goodput", GOODPUT), ("capacity", RECOMPUTED))
REFERENCES = {
    "max": (Look("#D55E00", "", "--"), "max: reserves the bound"),
    "none": (Look("#56B4E9", "", "--"), "none: grows page by page"),
}


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`estimate_price`: throughput and goodput of the oracle's, and what is computed again."""
    points = _points(rows)
    if points.empty:
        return []
    placements = [name for name in PLACEMENTS if name in set(points["placement"])]
    looks = looks_of(sorted(points[points["expected"] == "predicted"]["expected_spread"].unique()))
    with style.context():
        figure, grid = subplots(
            style, len(placements), len(PANELS), PanelSize(3.3, 2.4), sharex=True, sharey="col"
        )
        for line, placement in zip(grid, placements, strict=True):
            for axes, (part, panel) in zip(line, PANELS, strict=True):
                own = points[(points["part"] == part) & (points["placement"] == placement)]
                guesses = own[own["expected"] == "predicted"]
                draw_lines(axes, guesses, "expected_bias", "expected_spread", panel, looks)
                _draw_references(axes, own, panel)
                axes.set_title(PLACEMENT_LABELS[placement])
                axes.set_xlabel("median guess / true output")
                if len(guesses):
                    power_ticks(axes, [0.25, 0.5, 1, 2, 4])
        for axes in grid[:, -1]:
            axes.set_yscale("symlog", linthresh=0.1)
            axes.yaxis.set_major_formatter("{x:g}")
        from_zero(list(grid.flat))
        slo = slo_in_words(jobs_of(rows, jobs))
        title = f"Reserving by a guess of the output length (simulated; goodput: {slo})"
        handles = line_handles(looks, {spread: f"guess, spread {spread:g}" for spread in looks})
        for look, label in REFERENCES.values():
            handles += line_handles({label: look})
        handles += line_handles({"oracle: reserves the truth": Look("#666666", "", ":")})
        arrange(figure, style, title=title, handles=handles)
        return save(figure, "estimate_price", folder, points, jobs_of(rows, jobs))


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Text | None:
    """The findings, a line each; None where these rows hold none."""
    lines = findings(rows, jobs)
    return Text("\n".join(lines)) if lines else None


def findings(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """What the extreme guesses without scatter, and the scatter without bias, leave of the
    oracle's throughput and goodput."""
    rows = _compared(rows)
    if rows.empty:
        return []
    lines = []
    for placement in PLACEMENTS:
        for part, panel in (("capacity", CAPACITY), ("goodput", GOODPUT)):
            own = rows[(rows["part"] == part) & (rows["placement"] == placement)]
            said = _extremes(own[own["expected"] == "predicted"], panel.metric)
            if said:
                lines.append(f"{part}, {PLACEMENT_LABELS[placement]}, of the oracle's: {said}")
    return lines


def _extremes(guesses: pd.DataFrame, metric: str) -> str:
    said = {}
    biases, spreads = guesses["expected_bias"], guesses["expected_spread"]
    chosen = {
        "{:g} times too short": (biases.min(), 0.0),
        "{:g} times too long": (biases.max(), 0.0),
        "right in the median, spread {:g}": (1.0, spreads.max()),
    }
    for words, (bias, spread) in chosen.items():
        own = guesses[(biases == bias) & (spreads == spread)]
        if len(own):
            interval = t_interval(own[metric].to_numpy(dtype=float))
            amount = spread if bias == 1 else max(bias, 1 / bias)
            said[words.format(amount)] = interval
    doubt = doubts(list(said.values()))
    return "; ".join(
        f"{words}: {in_words(each)}{but}"
        for (words, each), but in zip(said.items(), doubt, strict=True)
    )


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows beside the oracle's of the same placement, part and seed."""
    rows = with_placement(rows[rows["status"] == "complete"])
    if rows.empty or not (rows["expected"] == "oracle").any():
        return rows.iloc[:0]
    rows = rows.assign(recomputed_per_token=rows["recomputed_tokens"] / rows["output_tokens"])
    return against(
        rows, rows["expected"] == "oracle", ["part", "placement"],
        ["output_tokens_per_s", "goodput_requests_per_s"],
    )  # fmt: skip


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    compared = _compared(rows)
    if compared.empty:
        return compared
    metrics = [*(panel.metric for _, panel in PANELS), "preemptions", "saturated_share"]
    return means(compared, ["part", *KEYS], metrics)


def _draw_references(axes: Axes, points: pd.DataFrame, panel: Panel) -> None:
    if panel.metric.endswith("_ratio"):
        axes.axhline(1, linestyle=":", linewidth=thin_line(), color="#666666")
    for expected, (look, _) in REFERENCES.items():
        for value in points[points["expected"] == expected][panel.metric]:
            axes.axhline(value, linestyle="--", linewidth=thin_line(), color=look.colour)

"""Pages that samples and beams share (PagedAttention, Fig. 15)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import sharing_figure
from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.plotting import means
from experiments.sharing_figure import Decoding
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

MODES = {
    "parallel": Decoding("samples", "parallel", "samples a request"),
    "beam": Decoding("beam_width", "beam", "beam width"),
}
REASONS = {
    ("parallel", "alpaca_like"): "alpaca_lengths",
    ("parallel", "sharegpt"): "sharegpt_samples",
    ("beam", "alpaca_like"): "beams",
    ("beam", "sharegpt"): "beams",
}


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig15_parallel_saved` and `paper_fig15_beam_saved`."""
    paths = []
    for mode, decoding in MODES.items():
        chosen = _chosen(rows, decoding)
        paths += sharing_figure.draw(chosen, jobs, folder, decoding, f"paper_fig15_{mode}", style)
    return paths


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """Pages saved for each number of sequences that the paper has."""
    found = []
    for mode, decoding in MODES.items():
        chosen = _chosen(rows, decoding)
        if chosen.empty:
            continue
        points = means(chosen, ["workload", decoding.setting], ["sharing_saved"])
        theirs = published_numbers()["fig15_saved_percent"][mode]
        for _, point in points.iterrows():
            workload, count = point["workload"], point[decoding.setting]
            percent = theirs[workload].get(count)
            if percent is not None:
                found.append(
                    Quantity(
                        "15", f"{workload}, {count} {NOUNS[mode]}: pages saved", "%", percent,
                        Interval(
                            100 * point["sharing_saved"], 100 * point["sharing_saved_ci"],
                            int(point["repetitions"]),
                        ),
                        reason(REASONS[mode, workload]),
                    )
                )  # fmt: skip
    return found


NOUNS = {"parallel": "samples", "beam": "beams"}


def _chosen(rows: pd.DataFrame, decoding: Decoding) -> pd.DataFrame:
    return rows[(rows["part"] == "fig15") & (rows[decoding.setting] > 1)]

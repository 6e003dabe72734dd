"""Pages that samples of one prompt share, and what that buys (PagedAttention, Figs. 14, 15)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import sharing_figure
from experiments.figure_style import DEFAULT, FigureStyle
from harness.runs.jobs import Job

DECODING = sharing_figure.Decoding("samples", "parallel", "samples a request")


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`parallel_sampling_saved` and `parallel_sampling_throughput`."""
    return sharing_figure.draw(rows, jobs, folder, DECODING, "parallel_sampling", style)

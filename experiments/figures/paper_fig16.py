"""Latency over request rate behind a shared prefix (PagedAttention, Fig. 16)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper import rates as paper_rates
from experiments.paper.quantities import Quantity, published_numbers, reason
from harness.runs.jobs import Job

FIGURE = paper_rates.RateFigure(
    "paper_fig16",
    "fig16",
    ("shared_len",),
    {(80,): "1-shot, 80 tokens shared", (341,): "5-shot, 341 tokens shared"},
    claims={
        (length,): ("orca_oracle", ratio, ratio)
        for length, ratio in published_numbers()["fig16_throughput_ratio"].items()
    },
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig16`: a panel a prefix."""
    return paper_rates.draw(rows, jobs, folder, FIGURE, style)


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """The rates that sharing sustains over Orca's with the true lengths."""
    rates = paper_rates.highest_rates(rows, jobs, FIGURE)
    return [
        Quantity(
            "16", f"{FIGURE.titles[length,]}: paged over Orca (Oracle)", "x", ratio,
            paper_rates.rate_ratio(rates[rates["shared_len"] == length], "vllm", "orca_oracle"),
            reason("translation_lengths"),
        )
        for length, ratio in published_numbers()["fig16_throughput_ratio"].items()
        if length in set(rates["shared_len"])
    ]  # fmt: skip

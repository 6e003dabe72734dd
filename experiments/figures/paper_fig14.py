"""Latency over request rate with several outputs a request (PagedAttention, Fig. 14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_style import DEFAULT, FigureStyle
from experiments.figures import paper_fig12
from experiments.paper import rates as paper_rates
from experiments.paper.quantities import Quantity, published_numbers, reason
from harness.runs.jobs import Job

WIDTHS = (2, 4, 6)

_BEAM_GAIN = published_numbers()["fig14_throughput_ratio"]["beam_6"]

FIGURE = paper_rates.RateFigure(
    "paper_fig14",
    "fig14",
    ("samples", "beam_width"),
    {
        **{(width, 1): f"parallel sampling, {width} samples" for width in WIDTHS},
        **{(1, width): f"beam search, width {width}" for width in WIDTHS},
    },
    claims={(1, 6): ("orca_oracle", _BEAM_GAIN, _BEAM_GAIN)},
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig14`: a panel a way of decoding and number of sequences."""
    return paper_rates.draw(rows, jobs, folder, FIGURE, style)


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """The rates that paging sustains over Orca's with the true lengths: of one output (Fig. 12's
    runs) and of beams of width 6, as the text gives them."""
    theirs = published_numbers()["fig14_throughput_ratio"]
    basic = paper_rates.highest_rates(rows, jobs, paper_fig12.FIGURE)
    basic = basic[(basic["workload"] == "alpaca_like") & (basic["model"] == "opt_13b")]
    rates = paper_rates.highest_rates(rows, jobs, FIGURE)
    beams = rates[(rates["samples"] == 1) & (rates["beam_width"] == 6)]
    return [
        Quantity(
            "14", f"Alpaca-like, {name}: paged over Orca (Oracle)", "x", theirs[key],
            paper_rates.rate_ratio(panel, "vllm", "orca_oracle"), reason(why),
        )
        for key, name, panel, why in (
            ("basic", "one output", basic, "alpaca_lengths"),
            ("beam_6", "beams of width 6", beams, "beams"),
        )
        if len(panel)
    ]  # fmt: skip

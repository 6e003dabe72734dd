"""Latency over request rate for rounds of chats (PagedAttention, Fig. 17)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper import rates as paper_rates
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.paper.systems import SYSTEMS
from harness.runs.jobs import Job

_GAIN = published_numbers()["fig17_throughput_ratio"]["oracle"]

FIGURE = paper_rates.RateFigure(
    "paper_fig17",
    "fig17",
    ("workload",),
    {("chat_rounds",): "OPT-13B, rounds of chats"},
    claims={("chat_rounds",): ("orca_oracle", _GAIN, _GAIN)},
)


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig17`."""
    return paper_rates.draw(rows, jobs, folder, FIGURE, style)


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """The rates that paging sustains over each of the three Orcas'."""
    rates = paper_rates.highest_rates(rows, jobs, FIGURE)
    theirs = published_numbers()["fig17_throughput_ratio"]
    return [
        Quantity(
            "17", f"rounds of chats: paged over {look.label}", "x", theirs[look.published],
            paper_rates.rate_ratio(rates, "vllm", system), reason("chat_lengths"),
        )
        for system, look in SYSTEMS.items()
        if look.published in theirs and system in set(rates["system"])
    ]  # fmt: skip

"""Latency over request rate for three sizes of OPT (PagedAttention, Fig. 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.figure_style import DEFAULT, FigureStyle
from experiments.paper import rates as paper_rates
from experiments.paper.quantities import Quantity, published_numbers, reason
from experiments.paper.systems import SYSTEMS
from harness.runs.jobs import Job

MODELS = {
    "opt_13b": "OPT-13B, A100-40GB",
    "opt_66b": "OPT-66B, 4 x A100-40GB",
    "opt_175b": "OPT-175B, 8 x A100-80GB",
}
WORKLOADS = {"sharegpt": "ShareGPT", "alpaca_like": "Alpaca-like"}

FIGURE = paper_rates.RateFigure(
    "paper_fig12",
    "fig12",
    ("workload", "model"),
    {
        (workload, model): f"{MODELS[model]}, {WORKLOADS[workload]}"
        for workload in WORKLOADS
        for model in MODELS
    },
    claims={
        ("sharegpt", model): ("orca_oracle", *published_numbers()["fig12_rate_ratio"]["oracle"])
        for model in MODELS
    },
)

_REASONS = {"ft_artifact": "static_batches"}


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`paper_fig12`: a panel a workload and model."""
    return paper_rates.draw(rows, jobs, folder, FIGURE, style)


def quantities(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Quantity]:
    """The rates that paging sustains over those of each baseline: the text gives their ranges for
    ShareGPT, and says that Alpaca's are similar."""
    rates = paper_rates.highest_rates(rows, jobs, FIGURE)
    theirs = published_numbers()["fig12_rate_ratio"]
    ranges = {
        "ft_artifact": (-math.inf, theirs["ft_at_most"]),
        "orca_max": tuple(theirs["max"]),
        "orca_oracle": tuple(theirs["oracle"]),
    }
    found = []
    for (workload, model), panel in rates.groupby(["workload", "model"], sort=False):
        is_synthetic = workload == "alpaca_like"
        for base, ends in ranges.items():
            if base in set(panel["system"]):
                found.append(
                    Quantity(
                        "12", f"{FIGURE.titles[workload, model]}: paged over {SYSTEMS[base].label}",
                        "x", ends, paper_rates.rate_ratio(panel, "vllm", base),
                        reason("alpaca_lengths" if is_synthetic else _REASONS.get(base, "")),
                    )
                )  # fmt: skip
    return found

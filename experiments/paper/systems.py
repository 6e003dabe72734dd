"""The systems of the PagedAttention paper's figures, and the stronger ones beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from experiments.plotting import EXPECTED_COLOURS, line_width, thin_line
from harness.config import RunConfig
from harness.runs.jobs import Job


class System(NamedTuple):
    """label: as drawn; with the paper's name where it has one. colour, marker, dashes: of lines.
    published: its name in experiments/published/pagedattention.yaml, empty for one that the
    paper does not have.
    """

    label: str
    colour: str
    marker: str
    dashes: str | tuple[float, ...]
    published: str = ""


_STATIC = "#56B4E9"

SYSTEMS: dict[str, System] = {
    "ft_artifact": System("FasterTransformer, artifact's batch", _STATIC, "v", "-", "ft"),
    "ft_largest": System("FasterTransformer, largest batch", _STATIC, "^", ":"),
    "orca_max": System("Orca (Max)", EXPECTED_COLOURS["max"], "D", "-", "max"),
    "orca_pow2": System("Orca (Pow2)", EXPECTED_COLOURS["pow2"], "D", "-", "pow2"),
    "orca_oracle": System("Orca (Oracle)", EXPECTED_COLOURS["oracle"], "D", "-", "oracle"),
    "first_fit_max": System("first fit, max", EXPECTED_COLOURS["max"], "s", ":"),
    "first_fit_pow2": System("first fit, pow2", EXPECTED_COLOURS["pow2"], "s", ":"),
    "first_fit_oracle": System("first fit, oracle", EXPECTED_COLOURS["oracle"], "s", ":"),
    "vllm": System("paged (vLLM)", "#0072B2", "o", "-", "paged"),
}
"""In the order of drawing. Orca's memory is the paper's buddy allocator; first fit places what
Orca reserves without its round-up. The paper has no such baseline."""


def system_of(config: RunConfig) -> str:
    """The key in `SYSTEMS` of what `config` runs; empty for one that no figure has."""
    if config.engine.schedule == "static":
        return "ft_largest" if config.engine.batch_size is None else "ft_artifact"
    if config.allocator.name == "contiguous":
        fit = {"buddy": "orca", "first_fit": "first_fit"}.get(str(config.allocator.options["fit"]))
        key = f"{fit}_{config.allocator.expected}"
        return key if key in SYSTEMS else ""
    return "vllm" if config.allocator.expected == "none" else ""


def with_systems(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """`rows` of complete runs of known systems, with `system` and
    `host_us_per_sequence`."""
    configs = {job.run_id: job.config for job in jobs}
    added: list[dict[str, Any]] = []
    for run_id in rows["run_id"]:
        config = configs[run_id]
        host_us = config.executor.host_us_per_sequence
        added.append({"system": system_of(config), "host_us_per_sequence": host_us})
    columns = pd.DataFrame(added, index=rows.index, columns=["system", "host_us_per_sequence"])
    joined = pd.concat([rows, columns], axis="columns")
    return joined[(joined["status"] == "complete") & (joined["system"] != "")]


def in_order(systems: Iterable[str]) -> list[str]:
    """These systems in the order of `SYSTEMS`, each once."""
    present = set(systems)
    return [system for system in SYSTEMS if system in present]


def line_look(system: str) -> dict[str, Any]:
    """How a system's lines are drawn."""
    look = SYSTEMS[system]
    width = line_width() if look.published else thin_line()
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.dashes,
        "linewidth": width,
        "markersize": 0.9 * float(plt.rcParams["lines.markersize"]),
    }


def handles(systems: Iterable[str]) -> list[Line2D]:
    """Legend entries of these systems."""
    return [
        Line2D([], [], label=SYSTEMS[system].label, **line_look(system))
        for system in in_order(systems)
    ]

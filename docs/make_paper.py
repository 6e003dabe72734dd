"""Fills the generated blocks of docs/paper.md from what `make paper` left in results/paper.

Run `make paper` first; `--results-dir` for results that lie elsewhere. `--pairs DIR`: results of
experiment=paper_fig2 with a file of ShareGPT's pairs; without it that block stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from page_blocks import replace_block

from experiments.paper.systems import SYSTEMS
from harness.measure.statistics import MIN_REPETITIONS_FOR_INTERVAL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper.md"
PICTURES: Mapping[str, str] = {
    "paper_fig2": "KV memory by class: the paper's bars beside ours",
    "paper_fig12": "Latency over request rate for three sizes of OPT",
    "paper_fig13": "Batched requests at three loads, beside the paper's",
    "paper_host_time": "Batched requests and sustained rates over the host's time",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    parser.add_argument("--pairs", type=Path)
    given = parser.parse_args()
    folder = given.results_dir / "paper"
    text = PAGE.read_text()
    for name, fill in BLOCKS.items():
        text = replace_block(text, name, fill(folder))
    for name, alt in PICTURES.items():
        text = replace_block(text, name, picture(folder, name, alt))
    if given.pairs is not None:
        text = replace_block(text, "pairs", pairs(folder, given.pairs / "paper_fig2"))
    PAGE.write_text(text)


def table(folder: Path) -> str:
    """The closing table, and how many seeds are behind it."""
    counts = pd.read_csv(folder / "paper_table.csv")["repetitions"]
    seeds = f"{counts.min()} to {counts.max()}"
    note = f"Repetitions behind a row: {seeds}; ± is the 95 % interval, given from "
    note += f"{MIN_REPETITIONS_FOR_INTERVAL} on."
    return (folder / "paper_table.md").read_text().strip() + "\n\n" + note


def host_time(folder: Path) -> str:
    """Batched requests and sustained rates by the host's time."""
    points = pd.read_csv(folder / "figures" / "paper_host_time.csv")
    lines = ["| host's time, µs a sequence and step | system | ShareGPT at 2/s, batched | "
             "Alpaca-like at 30/s, batched | ShareGPT, highest sustained rate, 1/s |",
             "| ---: | --- | ---: | ---: | ---: |"]  # fmt: skip
    for (host_us, system), group in points.groupby(["host_us_per_sequence", "system"]):
        batched = group.set_index("workload")["batched"]
        cells = [_number(batched.get(name)) for name in ("sharegpt", "alpaca_like")]
        sustained = group["sustained"].dropna()
        cells.append(_number(sustained.iloc[0] if len(sustained) else None, 2))
        lines.append(f"| {host_us:g} | {SYSTEMS[system].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gain_over_first_fit(folder: Path) -> str:
    """Highest sustained rates of OPT-13B on ShareGPT, by system."""
    found = pd.read_csv(folder / "figures" / "paper_fig12.csv")
    panel = found[
        found["panel"].str.startswith("OPT-13B") & found["panel"].str.endswith("ShareGPT")
    ]
    rates = panel[panel["sustained"]].groupby("system")["rate"].max()
    lines = [
        "| system | highest sustained rate, requests/s | paged over it |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {look.label} | {rates[system]:.2f} | {rates['vllm'] / rates[system]:.2f}x |"
        for system, look in SYSTEMS.items()
        if system in rates
    ]
    return "\n".join(lines)


def pairs(folder: Path, of_pairs: Path) -> str:
    """Token states and batched requests of Fig. 2 with the shipped table and with the pairs."""
    shipped, own = (
        pd.read_csv(path / "figures" / "paper_fig2.csv").query("source == 'here'")
        for path in (folder, of_pairs)
    )
    both = shipped.set_index("system").join(own.set_index("system").add_suffix("_pairs"))
    lines = [
        "| system | token states, table % | pairs % | batched requests, table | pairs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for system, row in both.iterrows():
        columns = ("token", "token_pairs", "batched", "batched_pairs")
        cells = " | ".join(_number(row[column]) for column in columns)
        lines.append(f"| {SYSTEMS[str(system)].label} | {cells} |")
    seeds = f"{shipped['repetitions'].iloc[0]:g} and {own['repetitions'].iloc[0]:g}"
    return "\n".join([*lines, "", f"Seeds: {seeds}."])


def picture(folder: Path, name: str, alt: str) -> str:
    """Copy a figure to docs/images/ and show it."""
    target = ROOT / "docs" / "images" / f"{name}.png"
    shutil.copy(folder / "figures" / f"{name}.png", target)
    return f"![{alt}](images/{name}.png)"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


BLOCKS: dict[str, Callable[[Path], str]] = {
    "table": table,
    "host_time": host_time,
    "gain_over_first_fit": gain_over_first_fit,
}

if __name__ == "__main__":
    main()

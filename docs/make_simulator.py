"""Fills the generated block of docs/simulator.md from what
`python -m experiments calibrate --validate` left in results/calibration, and keeps that beside it:
`python docs/make_simulator.py [--results-dir DIR]`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from page_blocks import replace_block

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "simulator.md"
KEPT = ROOT / "results" / "reference" / "simulator_error"
FILES = ("calibration.json", "simulator_error.md", "figures/simulator_error.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    folder = parser.parse_args().results_dir / "calibration"
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(folder / name, KEPT / Path(name).name)
    environment = json.loads((KEPT / "calibration.json").read_text())["environment"]
    table = (KEPT / "simulator_error.md").read_text().strip()
    picture = "images/simulator_error.png"
    shutil.copy(folder / "figures" / "simulator_error.png", ROOT / "docs" / picture)
    machine = f"{environment['cpu']}, {environment['threads']} threads"
    block = f"{machine}; errors in percent, bold beyond their goal:\n\n{table}\n\n"
    block += f"![Errors of simulated runs, a panel a metric]({picture})"
    PAGE.write_text(replace_block(PAGE.read_text(), "simulator_error", block))


if __name__ == "__main__":
    main()

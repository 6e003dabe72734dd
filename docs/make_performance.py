"""README's section on GPUs, out of results/reference/gpu alone; without it, that there is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.gpu.figures import draw
from experiments.gpu.goals import Goal
from experiments.gpu.rows import DryRowsError, Row, read_rows, refuse_dry

HEADING = "## Performance on a GPU"
_BEFORE = "## Limits\n\n"
_AFTER_NO_RESULTS = "## Is the engine fast enough to be believed?\n"
_NO_RESULTS = (
    "No such run's results are committed yet: no figure of a GPU is claimed anywhere here.\n\n"
)
_NOT_RUN = """\
- Not yet run on a GPU: the Triton kernels are checked against the reference under Triton's
  interpreter and compiled ahead of time for sm_80, sm_90 and sm_100; CUDA graphs, overlap and the
  memory profile run on stand-ins. What `make gpu` aims at (docs/gpu.md) is not measured.
"""
_BLOCK = re.compile(
    rf"{HEADING}\n\n<!-- generated: performance -->\n.*?<!-- end -->\n\n", re.DOTALL
)
_ALT = {
    "gpu_bandwidth": "Decode attention: share of the read bandwidth over context, by page and peer",
    "gpu_page_size": "Decode attention over page size, beside the same kernel without a table",
}


def with_performance(text: str, content: str | None) -> str:
    """README's `text` with the section before its limits; where `content` is None, without it and
    with what says that nothing was measured, which a text with the section never says."""
    bare = _BLOCK.sub("", text)
    for unmeasured in (_NO_RESULTS, _NOT_RUN):
        bare = bare.replace(unmeasured, "")
    if content is None:
        return _put(_put(bare, _NO_RESULTS, before=_AFTER_NO_RESULTS), _NOT_RUN, after=_BEFORE)
    block = f"{HEADING}\n\n<!-- generated: performance -->\n{content}\n<!-- end -->\n\n"
    return _put(bare, block, before=_BEFORE)


def _put(text: str, piece: str, *, before: str = "", after: str = "") -> str:
    heading = before or after
    if text.count(heading) != 1:
        raise ValueError(f"README has {text.count(heading)} headings {heading.strip()!r}, not one")
    return text.replace(heading, after + piece + before)


def section(results: Path, images: Path, root: Path) -> str | None:
    """Device, goals, engine and pictures of the run in `results`; None where there is no run.

    Pictures are copied to `images`, which lies below `root`. Raises DryRowsError for a dry run.
    """
    if not (results / "run.json").is_file():
        return None
    run = json.loads((results / "run.json").read_text())
    goals = json.loads((results / "goals.json").read_text())
    if run["dry"] or goals["dry"]:
        raise DryRowsError(f"{results} holds a dry run, which says nothing about a GPU")
    rows = {name: read_rows(results / name) for name in ("environment", "kernels", "engine")}
    for each in rows.values():
        refuse_dry(each)
    parts = [
        _device(run, rows["environment"]),
        _goals(goals["goals"]),
        _engine(rows["engine"]),
        *_pictures(rows["kernels"], images, root),
    ]
    return "\n\n".join(part for part in parts if part)


def _device(run: Mapping[str, Any], rows: Sequence[Row]) -> str:
    rates = ", ".join(
        f"{row['case']} {row['value']:,.0f} {row['unit']}" for row in rows if "unit" in row
    )
    versions = ", ".join(run["versions"])
    measured = f" Measured on it: {rates}." if rates else ""
    return f"`make gpu` on one {run['device']} ({versions}).{measured}"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| aimed at | target | measured | cases | |", "|---|---|---|---:|---|"]
    lines += [
        f"| {goal.name} | {goal.target} | {goal.measured} | {goal.counted} | {goal.verdict} |"
        for goal in (Goal(**each) for each in goals)
    ]
    return "\n".join([*lines, "", "The worst case of each decides."])


def _engine(rows: Sequence[Row]) -> str:
    steps = [row for row in rows if row.get("bench") == "decode_steps" and row["status"] == "ok"]
    if not steps:
        return ""
    lines = [
        "| sequences x context | engine | tokens/s | ms a step | share of roofline |",
        "|---|---|---:|---:|---:|",
    ]
    for row in sorted(steps, key=lambda row: (row["batch"], row["context"])):
        name = row["contender"] + (f" ({row['attention']})" if row.get("attention") else "")
        step_ms = f"{row['step_ms']:.2f}" if "step_ms" in row else "-"
        share = f"{row['roofline_share']:.0%}" if "roofline_share" in row else "-"
        lines.append(
            f"| {row['batch']} x {row['context']:,} | {name} | "
            f"{row['decode_tokens_per_s']:,.0f} | {step_ms} | {share} |"
        )
    return "\n".join(lines)


def _pictures(rows: Sequence[Row], images: Path, root: Path) -> list[str]:
    images.mkdir(parents=True, exist_ok=True)
    shown = []
    with TemporaryDirectory() as folder:
        for path in draw(rows, Path(folder)):
            if path.suffix == ".png":
                target = images / path.name
                shutil.copy(path, target)
                shown.append(f"![{_ALT[path.stem]}]({target.relative_to(root)})")
    return shown

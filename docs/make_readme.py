"""Fills the generated blocks of README.md, docs/images/ and docs/output/ from results/reference/
alone: nothing is run. `--check` writes nothing and says what disagrees.

Of a long output README shows the first table and the closing lines; docs/output/ has the rest. The
section on GPUs is there if results/reference/gpu is.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from make_performance import section, with_performance
from page_blocks import replace_block
from reference import OUTPUT, REFERENCES, ROOT, Reference

MAX_RUN_LINES = 4
TABLE_TITLE = re.compile(r"^\w+ · .+ · (simulated|timed)")
RUN_LINE = re.compile(r"\[ *\d+/\d+\] ")
PROGRESS = re.compile(r"\d+ done, .*left")

CONSOLES = {
    "single": "single",
    "sweep": "sweep_page_size",
    "compare": "compare_allocators",
    "modes": "modes",
    "contract": "contract",
    "peers": "peers",
}
"""Blocks that show a command and its output, and the references that have it."""

EXCERPTS = ("sweep_page_size", "compare_allocators")
"""References of whose output README shows a part, and docs/output/ all."""

PICTURES = {
    "memory_map": ("memory_map", "The pool over time under three strategies"),
    "sweep_figure": (
        "page_size_waste",
        "Waste by class against page size, with contiguous strategies as reference lines",
    ),
    "compare_figure": (
        "compare_fig2",
        "Memory by the PagedAttention paper's classes: published and measured here",
    ),
    "sharing_figure": (
        "beam_search_saved",
        "Pages that beams share: published, simulated, and with a small model",
    ),
    "motivation": (
        "motivation",
        "KV bytes of common models, waste of reserving the bound, and requests that fit",
    ),
}
"""Blocks that show a picture: its name, and what stands for it."""


class Filled(NamedTuple):
    """README's text, and the files beside it by their path from the root."""

    text: str
    files: dict[str, bytes]


def main() -> int:
    """Write what is filled, or with --check say where it is not what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit status 1 where any disagrees")
    given = parser.parse_args()
    if given.check:
        found = disagreements(ROOT)
        print("\n".join(found) or "README, docs/images and docs/output agree", file=sys.stderr)
        return 1 if found else 0
    try:
        filled = fill(ROOT)
    except FileNotFoundError as error:
        print(f"{error.filename}: is missing: make reference", file=sys.stderr)
        return 1
    for name, content in {"README.md": filled.text.encode(), **filled.files}.items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return 0


def fill(root: Path) -> Filled:
    """README's text with every block filled, and its files, from `root`/results/reference.

    Raises FileNotFoundError for a reference that lacks what is shown of it.
    """
    text = (root / "README.md").read_text()
    kept = root / "results" / "reference"
    by_name = {reference.name: reference for reference in REFERENCES}
    files: dict[str, bytes] = {}
    for block, name in CONSOLES.items():
        output = shortened((kept / name / OUTPUT).read_text())
        if name in EXCERPTS:
            whole = f"docs/output/{name}.txt"
            files[whole] = (output + "\n").encode()
            output = excerpt(output, whole)
        text = replace_block(text, block, f"```console\n$ {by_name[name].command}\n{output}\n```")
    for block, (name, alternative) in PICTURES.items():
        target = f"docs/images/{name}.png"
        files[target] = (kept / _showing(name).name / "figures" / f"{name}.png").read_bytes()
        text = replace_block(text, block, f"![{alternative}]({target})")
    source = (root / "docs/examples/mine.py").read_text().rstrip()
    text = replace_block(text, "example", f"```python\n{source}\n```")
    return _with_performance(text, files, kept / "gpu")


def disagreements(root: Path) -> list[str]:
    """What is not as `results/reference` has it, a line each: a block of README, a file."""
    try:
        filled = fill(root)
    except FileNotFoundError as error:
        return [f"{error.filename}: is missing: make reference"]
    text = (root / "README.md").read_text()
    found = [
        f"README.md: {line}: is not what results/reference has: make readme"
        for line in _first_difference(text, filled.text)
    ]
    for name, content in filled.files.items():
        path = root / name
        if not path.is_file() or path.read_bytes() != content:
            found.append(f"{name}: is not what results/reference has: make readme")
    return found


def shortened(output: str) -> str:
    """A command's output without its lines on progress, and with all but the first few of its
    `[k/n] ...` lines counted only."""
    lines = [line for line in output.strip("\n").splitlines() if not PROGRESS.match(line)]
    of_runs = [line for line in lines if RUN_LINE.match(line)]
    if len(of_runs) <= MAX_RUN_LINES + 1:
        return "\n".join(lines)
    left_out = set(of_runs[MAX_RUN_LINES:])
    last = lines.index(of_runs[MAX_RUN_LINES - 1])
    lines.insert(last + 1, f"... {len(of_runs) - MAX_RUN_LINES} more lines, one a run ...")
    return "\n".join(line for line in lines if line not in left_out)


def excerpt(output: str, whole: str) -> str:
    """The first table and the closing checks of `output`, all of which is in the file `whole`."""
    lines = output.splitlines()
    tables = [i for i, line in enumerate(lines) if TABLE_TITLE.match(line)]
    closing = next(i for i, line in enumerate(lines) if line.startswith("ledger classes sum"))
    if len(tables) < 2:
        return output
    skipped = f"... {len(tables) - 1} more tables: {whole} ..."
    return "\n".join([*lines[: tables[1]], skipped, "", *lines[closing:]])


def _showing(picture: str) -> Reference:
    return next(reference for reference in REFERENCES if picture in reference.pictures)


def _with_performance(text: str, files: Mapping[str, bytes], results: Path) -> Filled:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = root / "docs" / "images"
        content = section(results, images, root)
        drawn = {f"docs/images/{path.name}": path.read_bytes() for path in images.glob("*")}
    return Filled(with_performance(text, content), {**files, **drawn})


def _first_difference(found: str, wanted: str) -> Sequence[str]:
    """The first line of `found` that is another in `wanted`, with its number; none where equal."""
    if found == wanted:
        return ()
    left, right = found.splitlines(), wanted.splitlines()
    pairs = zip(left, right, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
    shown = left[index].strip()[:60] if index < len(left) else "its end"
    return (f"line {index + 1} ({shown})",)


if __name__ == "__main__":
    raise SystemExit(main())

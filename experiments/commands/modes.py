"""Every way of decoding gives the reference's tokens under every strategy, as one table:
`python -m experiments modes --allocator ./mine.py:Mine`.

Rows are ways of decoding, columns strategies, cells requests that equal what transformers'
`generate` answers with its own attention and cache over the same weights, token for token:
greedily, by beam search, or drawn with each sample's random stream; those to be preempted are of
all three kinds. A cell is an error where what names its row did not happen (nobody was swapped, no
draft was accepted), unless the strategy may go without: then it is marked, and a note says so. The
models are small, with random weights. Exit status: 0, 1 on any difference or error, 2 for a wrong
command line.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from allocators import discovery
from allocators.page_pool import PagePool
from experiments.modes.cases import FAMILIES, PAGE_SIZE
from experiments.modes.runs import CPU, Cell, family_cells
from experiments.modes.table import closing_line, print_cells, strategies_of, to_frame, to_markdown
from harness.config import AllocatorConfig, RunConfig
from harness.conversion import to_mapping
from harness.measure.environment import capture_environment
from harness.runs.half_written import write_whole
from harness.runs.interrupted import go_on, resumable
from harness.runs.one_engine import build_allocator

_EXAMPLES = """\
examples:
  python -m experiments modes                                  # all models, half a minute each
  python -m experiments modes --family llama                   # one model
  python -m experiments modes --allocator ./mine.py:Mine       # with a column of your own
"""


RESERVING = (
    AllocatorConfig("contiguous", "max", options={"fit": "buddy"}),
    AllocatorConfig("contiguous", "oracle", options={"fit": "first_fit"}),
    AllocatorConfig("contiguous", "predicted", 0.6, 0.5, options={"fit": "best_fit"}),
)
"""Knowing the bound, the truth, and something that is mostly too short."""


def strategies(own: Sequence[str]) -> tuple[AllocatorConfig, ...]:
    """RESERVING, each other allocator of this package, and the user's `own`. ValueError for one
    that is not there, or that needs more than a pool to be built."""
    names = [name for name in discovery.available() if name != "contiguous"]
    names += [spec for spec in dict.fromkeys(own) if spec not in names]
    columns = RESERVING + tuple(AllocatorConfig(name) for name in names)
    for column in columns:
        build_allocator(RunConfig(allocator=column), PagePool(1024, PAGE_SIZE))
    return columns


def compare(
    families: Sequence[str], columns: Sequence[AllocatorConfig], console: Console
) -> list[Cell]:
    """All cells, with the run at work on the console's last line."""
    cells = []
    gc.freeze()  # each run begins with a collection, which need not look at what was imported
    try:
        with console.status("loading models") as status:
            for family in families:
                for cell in family_cells(family, columns):
                    cells.append(cell)
                    status.update(f"{family}: {cell.mode.name} ({len(cells)} cells done)")
    finally:
        gc.unfreeze()
    return cells


def provenance(cells: Sequence[Cell]) -> dict[str, Any]:
    """Machine, packages, revision, models, engines and strategies behind the cells."""
    models = {cell.family: asdict(FAMILIES[cell.family]) for cell in cells}
    modes = {
        f"{cell.family}, {cell.mode.name}": {
            "engine": to_mapping(cell.mode.engine),
            "pool_tokens": cell.mode.pool_tokens,
            "requests": cell.num_requests,
        }
        for cell in cells
    }
    columns = strategies_of(cells)
    digests = {column.name: _file_digest(column.name) for column in columns}
    return {
        "environment": asdict(capture_environment("cpu", CPU.threads or 0)),
        "page_size": PAGE_SIZE,
        "models": models,
        "modes": modes,
        "strategies": [to_mapping(column) for column in columns],
        "allocator_sha256": {name: digest for name, digest in digests.items() if digest},
    }


def write(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Markdown, CSV and provenance into `folder`, which exists."""
    paths = [folder / name for name in ("modes.md", "modes.csv", "modes.json")]
    write_whole(paths[0], to_markdown(cells))
    write_whole(paths[1], to_frame(cells).to_csv(index=False))
    write_whole(paths[2], json.dumps(provenance(cells), indent=2, default=str) + "\n")
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write. 0 where everything is equal, 1 where not, 2 for bad arguments."""
    given = _parser().parse_args(arguments)
    families = tuple(FAMILIES) if given.family == "all" else (given.family,)
    transformers.utils.logging.disable_progress_bar()
    console = Console(markup=False)
    try:
        columns = strategies(given.allocator)
        given.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, SyntaxError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with resumable(lambda: _interrupted(arguments or ())):
        cells = compare(families, columns, console)
    print_cells(cells, console)
    paths = write(cells, given.out)
    console.print(f"\n{closing_line(cells)}", highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(path.name for path in paths)
    console.print(f"results: {given.out}/  ({names})", highlight=False, markup=False)
    return 0 if all(cell.is_proof for cell in cells) else 1


def _interrupted(arguments: Sequence[str]) -> str:
    repeated = go_on("experiments modes", arguments)
    return f"interrupted: nothing is stored before the end; to begin again:\n  {repeated}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments modes", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all", help="of models")
    parser.add_argument(
        "--allocator",
        action="append",
        default=[],
        metavar="FILE.py:CLASS",
        help="one more column; may be repeated",
    )
    parser.add_argument("--out", type=Path, default=Path("results/modes"), help="folder to write")
    return parser


def _file_digest(name: str) -> str:
    """SHA-256 of an allocator's file; empty for one of this package."""
    path = Path(name.rpartition(":")[0] if ".py:" in name else name).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" else ""

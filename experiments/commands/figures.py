"""Figures again from stored runs, for a screen, a paper or slides:
`python -m experiments figures compare --style paper --width usenix`.

Each is written as PDF, PNG and SVG, with the points that it shows (CSV) and the runs that they come
from (JSON). The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import figures
from experiments.figure_style import PAGE_WIDTHS_IN, STYLES, FigureStyle, figure_style
from experiments.redraw import FOLDER, Asked, asked_for, draw_again, latest_studies
from experiments.stored import NAMES
from harness.config import ConfigError

EXAMPLES = """\
examples:
  python -m experiments figures --list
  python -m experiments figures                        every figure of every study
  python -m experiments figures sweep_page_size        those of one
  python -m experiments figures paper_fig12 --style paper
  python -m experiments figures compare --style paper --width usenix --columns 2 --output fig/
  python -m experiments figures page_size --of sweep_page_size@1f3a --style slides
"""

WIDTH = 118


def main(arguments: Sequence[str]) -> int:
    """Draw what is named. 0, 1 where a study cannot be drawn from or nothing is, 2 for a wrong
    command line."""
    options = _parser().parse_args(arguments)
    console = Console(markup=False) if sys.stdout.isatty() else Console(width=WIDTH, markup=False)
    if options.list:
        _print_list(options.results_dir, console)
        return 0
    style = figure_style(options.style, options.width, options.columns)
    asked = asked_for(options.names, options.results_dir, options.of)
    failed, total = False, 0
    for each in asked:
        output = options.output
        if output is not None and len(asked) > 1:
            output = output / each.study
        try:
            total += _draw(each, options, style, output, console)
        except ConfigError as error:
            if len(asked) == 1:
                raise
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return 1 if failed or total == 0 else 0


def _draw(
    asked: Asked, options: argparse.Namespace, style: FigureStyle, output: Path | None,
    console: Console,
) -> int:  # fmt: skip
    """Draw a study's figures and say so; how many files."""
    drawn = draw_again(asked, options.results_dir, style, _folder_name(options), output)
    study = drawn.study
    number = f"{len(study.jobs)} runs" if len(study.jobs) != 1 else "1 run"
    lacking = f", {study.missing} not stored yet" if study.missing else ""
    wide = "" if style.width_in is None else f", {style.width_in:.2f} in wide"
    console.print(f"{asked.study}: {', '.join(asked.modules)}, from {number}{lacking}{wide}",
                  highlight=False, markup=False)  # fmt: skip
    if not drawn.paths:
        console.print("  nothing in these runs for it", highlight=False)
        return 0
    ends: dict[Path, list[str]] = {}
    for path in drawn.paths:
        ends.setdefault(path.with_suffix(""), []).append(path.suffix)
    for path, suffixes in ends.items():
        console.print(f"  {path}{', '.join(suffixes)}", highlight=False, markup=False)
    return len(drawn.paths)


def _folder_name(options: argparse.Namespace) -> str:
    """`figures`, and what differs from the default style."""
    words = [FOLDER]
    if options.style != "default" or options.width or options.columns > 1:
        words += [options.style, options.width]
        words += [f"{options.columns}-columns"] if options.columns > 1 else []
    return "-".join(word for word in words if word)


def _print_list(results_dir: Path, console: Console) -> None:
    latest = latest_studies(results_dir)
    for name, record in latest.items():
        console.print(f"{name}@{record.study_id}  {record.updated_at[:16]}", highlight=False)
        for module in record.figures:
            console.print(f"  {module}", highlight=False)
    drawn = {module for record in latest.values() for module in record.figures}
    others = [module for module in figures.available() if module not in drawn]
    where = f"of no study in {results_dir}/" if latest else f"no study is stored in {results_dir}/"
    if others:
        console.print(f"{where}: {', '.join(others)}", highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments figures",
        description=__doc__,
        epilog=f"{NAMES}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="a figure (of all studies that draw it) or a study (all of its figures); default: all",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="studies, and the figures of each")
    parser.add_argument("--of", default="", metavar="STUDY", help="draw NAME from its runs")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="default: figures, or figures-STYLE, in the study's folder",
    )  # fmt: skip
    parser.add_argument("--style", choices=tuple(STYLES), default="default")
    parser.add_argument(
        "--width", default="", metavar="PAGE",
        help=f"one column of {', '.join(PAGE_WIDTHS_IN)}, or inches (paper: acm)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", type=int, choices=(1, 2), default=1, help="of the page, that it spans"
    )
    return parser

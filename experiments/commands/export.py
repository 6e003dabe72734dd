"""A study as a folder to publish beside a paper or to commit: its rows and settings, tables,
figures and report, without the folders of its runs:
`python -m experiments export sweep_page_size`.

Tables, figures and comparisons are made from such a folder as from the study itself, but for what
needs the steps or requests of single runs. The same study gives the same bytes. Exit status: 0; 1
where a check of the comparison fails; 2 for a wrong name or a folder that holds something else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.stored import NAMES, find_study

EXAMPLES = """\
examples:
  python -m experiments export sweep_page_size           exported/sweep_page_size/
  python -m experiments export sweep_page_size@1f3a --output paper/data/before --no-report
  python -m experiments figures sweep_page_size --results-dir exported --style paper
  python -m experiments compare paper/data/before exported/sweep_page_size
"""

EXPORTED = Path("exported")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder and say what it takes."""
    given = _parser().parse_args(arguments)
    study = find_study(given.name, given.results_dir)
    from experiments.exporting import export_study  # matplotlib and more

    folder = given.output or EXPORTED / study.record.experiment
    done = export_study(study, folder, with_report=given.report, with_pdf=given.pdf)
    size = sum(path.stat().st_size for path in done.paths)
    runs = "1 run" if len(study.jobs) == 1 else f"{len(study.jobs)} runs"
    lacking = f" ({study.missing} not stored yet)" if study.missing else ""
    print(f"{runs}{lacking}: {folder}/  ({len(done.paths)} files, {size / 1e6:.2f} MB)")
    for failure in done.failures:
        print(f"FAILED CHECK: {failure}", file=sys.stderr)
    return 1 if done.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments export",
        description=f"{__doc__}\n{NAMES}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="RUN_OR_EXPERIMENT")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help=f"default: {EXPORTED}/EXPERIMENT; an export that lies there gives way",
    )  # fmt: skip
    for name, what in (("report", "the HTML page"), ("pdf", "figures as PDF, beside PNG and SVG")):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=what
        )
    return parser

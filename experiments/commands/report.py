"""One HTML page about finished runs, which opens from disk and needs no network: the question, the
answer with its interval, tables that sort, waste by class, latencies, memory over time, figures,
settings, machines and the command to repeat it. `python -m experiments report sweep_page_size`

The page is made from what is stored alone: the same runs give the same bytes. Exit status: 0, 2
for a name that is not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.stored import NAMES, available, find_study, no_study
from harness.config import ConfigError
from harness.runs.half_written import write_whole
from harness.runs.study_record import read_studies

EXAMPLES = """\
examples:
  python -m experiments report                             which studies there are
  python -m experiments report sweep_page_size             results/sweep_page_size/report.html
  python -m experiments report sweep_page_size compare_allocators --output both.html
"""

FILE = "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and say where it is; without a name, list the studies."""
    given = _parser().parse_args(arguments)
    if not given.names:
        return _list(given.results_dir)
    from experiments.report.page import make_page  # matplotlib and more, which a list needs not

    studies = [find_study(name, given.results_dir) for name in given.names]
    default = studies[0].folder if len(studies) == 1 else given.results_dir
    if given.output is None and studies[0].is_exported and (default / FILE).exists():
        raise ConfigError(f"{default / FILE}: an export's own page, which has more: give --output")
    path = given.output or default / FILE
    write_whole(path, make_page(studies))
    print(f"report: {path}  ({path.stat().st_size / 1e6:.2f} MB)")
    return 0


def _list(results_dir: Path) -> int:
    """A line a study, the latest command of each experiment first."""
    names = available(results_dir)
    if not names:
        raise ConfigError(no_study(results_dir))
    for name in names:
        for index, study in enumerate(read_studies(results_dir / name)):
            shown = name if index == 0 else f"{name}@{study.study_id[:6]}"
            runs = "1 run" if len(study.runs) == 1 else f"{len(study.runs)} runs"
            print(f"{shown:<32} {study.updated_at[:16]}  {runs:<9} {study.question}".rstrip())
    print(f"\npython -m experiments report {names[0]}   makes {results_dir / names[0] / FILE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments report",
        description=f"{__doc__}\n{NAMES}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="RUN_OR_EXPERIMENT", help="several make a section each"
    )
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="where the studies are"
    )
    parser.add_argument(
        "--output", type=Path, help=f"file to write (default: {FILE} in the experiment's folder)"
    )
    return parser

"""What changed between two runs or two sweeps: `python -m experiments compare A B`.

Cells of A are paired with cells of B by the settings that vary within them; what else differs
between the two is what changed. Compared are configs, environments, the headline metrics (pairs of
the same seed, with an interval from five pairs and a verdict from six on, corrected over all that
is tested), and, without a test, every count of the memory ledger, step by step.

{names} After a colon a part of it may be chosen, so that two parts of one sweep, whose runs took
turns on the machine, are compared: `single:kv.page_size=16`.

Exit status: 0 no difference that counts; 1 something is worse in B: a metric by more than the
threshold, a run that failed in B alone, or with --exact any count that differs; 2 wrong command
line; 3 too little to tell: a cell or seed of A that B lacks, or fewer than six pairs everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.comparison.comparison import compare
from experiments.comparison.metrics import METRICS
from experiments.comparison.output import print_comparison, to_csv, to_json, to_markdown
from experiments.comparison.selection import find_side
from experiments.exported import refuse_export
from experiments.stored import NAMES
from harness.config import ConfigError
from harness.runs.half_written import write_whole

_EXAMPLES = """\
examples:
  python -m experiments compare sweep_page_size@1f3a sweep_page_size
  python -m experiments compare baseline/single results/single --threshold 3 --markdown diff.md
  python -m experiments compare single:kv.page_size=16 single:kv.page_size=64
  python -m experiments compare before/compare_allocators compare_allocators --exact
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; the exit status says whether B is worse (see the docstring)."""
    given = _parser().parse_args(arguments)
    if given.threshold < 0:
        raise ConfigError(f"--threshold {given.threshold:g}: give a percentage of 0 or more")
    sides = [find_side(name, given.results_dir) for name in (given.before, given.after)]
    if given.exact:
        for side in sides:
            refuse_export(side.study.folder)
    found = compare(
        *sides,
        metrics=given.metric,
        threshold=given.threshold / 100,
    )
    console = Console(markup=False)
    print_comparison(found, console, every_cell=given.all, exact=given.exact)
    for path, text in (
        (given.markdown, lambda: to_markdown(found, exact=given.exact)),
        (given.csv, lambda: to_csv(found)),
        (given.json, lambda: to_json(found, exact=given.exact)),
    ):
        if path is not None:
            write_whole(path, text())
    return found.exit_status(exact=given.exact)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments compare",
        description=(__doc__ or "").format(names=NAMES),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="A", help="what there was: the baseline")
    parser.add_argument("after", metavar="B", help="what there is now")
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="where names are looked for"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="a metric that is worse by less does not count",
    )
    parser.add_argument(
        "--exact", action="store_true", help="any count of the ledger that differs counts as worse"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help=f"compare this instead of the headline ones; may be repeated: {', '.join(METRICS)}",
    )
    parser.add_argument("--all", action="store_true", help="print every cell of many")
    for name in ("markdown", "csv", "json"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {name} as well")
    return parser

"""Builds a W&B workspace and a report: `python -m experiments dashboard --entity E --project P`.

The workspace shows all runs of the project that `tracking=wandb` logged: ledger classes over steps,
waste by class, throughput against page size, latency percentiles, pressure on memory, a run
comparer. The report shows the same, and of a RUN_OR_EXPERIMENT its question, its table and its
figures. Their definition is written to a file first. Exit status: 0 where W&B has both, or
`--offline` asked for the file alone; 1 where not; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.present import present
from experiments.stored import NAMES, StoredStudy, find_study
from harness.config import TrackingConfig

if TYPE_CHECKING:
    from experiments.dashboard.definition import Answer, Dashboard

_EPILOG = f"""\
{NAMES}

examples:
  python -m experiments dashboard --entity my-team --project kvarena
  python -m experiments dashboard sweep_page_size --entity my-team --project kvarena
  python -m experiments dashboard sweep_page_size --entity my-team --offline
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build both, see the module's docstring."""
    given = _parser().parse_args(arguments)
    try:
        from experiments.dashboard import definition
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        return _fail("wandb-workspaces is not installed: pip install 'kvarena[dashboard]'")
    study = find_study(given.name, given.results_dir) if given.name else None
    folder = study.folder if study else given.results_dir
    answer = _answer(study) if study else None
    dashboard = definition.make_dashboard(given.entity, given.project, answer)
    path = given.output or folder / "dashboard.json"
    definition.write(dashboard, path)
    print(f"definition: {path}")
    return 0 if given.offline else _save(dashboard)


def _save(dashboard: Dashboard) -> int:
    from harness.tracking.wandb_login import is_logged_in, why_unreachable

    if not is_logged_in():
        return _fail(
            "W&B needs a login to save a workspace or a report: run `wandb login`, or set "
            "WANDB_API_KEY, and repeat the command; --offline writes the file alone"
        )
    if reason := why_unreachable():
        return _fail(f"{reason}: nothing was saved to W&B")
    try:
        dashboard.workspace.save()
        dashboard.report.save()
    except Exception as error:  # a key that is refused, an entity that is not: in W&B's words
        return _fail(f"W&B did not save it: {error}")
    print(f"workspace: {dashboard.workspace.url}\nreport: {dashboard.report.url}")
    return 0


def _answer(study: StoredStudy) -> Answer:
    from experiments.dashboard.definition import Answer

    quiet = Console(file=io.StringIO(), markup=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = present(study.rows, study.jobs, study.record.figures, folder, quiet).paths
        comparison = (folder / "comparison.md").read_text()
        drawn = [path.stem for path in paths if path.suffix == ".png"]
    return Answer(study.record, comparison, drawn)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments dashboard",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="RUN_OR_EXPERIMENT", help="what the report is of")
    add("--results-dir", type=Path, default=Path("results"), help="default: results")
    add("--entity", required=True, help="W&B user or team")
    project = TrackingConfig().project
    add("--project", default=project, help=f"default: {project}")
    add("--offline", action="store_true", help="only write the definition")
    add("--output", type=Path, metavar="FILE", help="default: dashboard.json beside the runs")
    return parser

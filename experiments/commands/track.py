"""Logs a stored study to W&B: `python -m experiments track RUN_OR_EXPERIMENT`.

What W&B has already is left out, so that a command whose upload was ended, that was interrupted, or
that ran with another `tracking` is made up for by this one. See docs/wandb.md for what is logged.
Exit status: 0 where W&B has all of it by then, 1 where not, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.present import present
from experiments.stored import NAMES, StoredStudy, find_study
from harness.config import TrackingConfig
from harness.runs.rows import write_rows
from harness.tracking.wandb_upload import upload_study

_EPILOG = f"""\
{NAMES}

examples:
  python -m experiments track sweep_page_size --project kvarena
  python -m experiments track sweep_page_size@1f3a --entity my-team --timeout-s 3600
  python -m experiments track memory_map --offline
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Log a study, see the module's docstring."""
    given = _parser().parse_args(arguments)
    config = TrackingConfig(
        kind="wandb",
        project=given.project,
        entity=given.entity,
        mode="offline" if given.offline else "auto",
        timeout_s=given.timeout_s,
        step_files=given.step_files,
    )
    study = find_study(given.name, given.results_dir)
    with tempfile.TemporaryDirectory() as scratch:
        paths = _present(study, Path(scratch))
        is_whole = upload_study(study.record, study.folder, paths, config, _tell)
    return 0 if is_whole else 1


def _tell(line: str) -> None:
    print(line, flush=True)


def _present(study: StoredStudy, folder: Path) -> list[Path]:
    """Its rows, tables and figures again: those in its folder may be of a later command."""
    paths = write_rows(study.rows, folder)
    quiet = Console(file=io.StringIO(), markup=False)
    return paths + present(study.rows, study.jobs, study.record.figures, folder, quiet).paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments track",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = TrackingConfig()
    add = parser.add_argument
    add("name", metavar="RUN_OR_EXPERIMENT", help="what to log")
    add("--results-dir", type=Path, default=Path("results"), help="default: results")
    add("--entity", help="W&B user or team; default: the one that W&B has for you")
    add("--project", default=defaults.project, help=f"default: {defaults.project}")
    add("--offline", action="store_true", help="only write it to the disk, for `wandb sync`")
    add(
        "--timeout-s", type=float, default=defaults.timeout_s,
        help=f"end W&B after so many seconds; default: {defaults.timeout_s:g}",
    )  # fmt: skip
    add("--step-files", action="store_true", help="all steps and requests in the artifact, too")
    return parser

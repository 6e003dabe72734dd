"""From stored rows to what a person reads: tables, checks, figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from experiments.checks import broken, run_checks
from experiments.figures import answers, draw_figures
from experiments.sustained_rate import print_sustained, sustained_rates
from experiments.table_output import PIPE_WIDTH, print_table, to_csv_rows, to_markdown
from experiments.tables import make_tables
from harness.config import ConfigError
from harness.runs.early_tables import TableKey
from harness.runs.half_written import write_whole
from harness.runs.jobs import Job
from harness.runs.stored_text import for_spreadsheets


class Presentation(NamedTuple):
    """paths: files written. failures: what makes the comparison worthless, a line each."""

    paths: list[Path]
    failures: tuple[str, ...]


def present(
    rows: pd.DataFrame,
    jobs: Sequence[Job],
    figures: Sequence[str],
    folder: Path,
    console: Console,
    shown: Collection[TableKey] = (),
) -> Presentation:
    """Print the comparison of `rows`, but for the tables `shown`; write all of it and the `figures`
    into `folder`, then say what the checks found.

    rows: as from `collect_rows`. figures: modules of `experiments.figures`.
    """
    if rows.empty:
        return Presentation([], ())
    tables = make_tables(rows, jobs)
    sustained = sustained_rates(rows, jobs)
    complete = rows[rows["status"] == "complete"]
    markdown, csv = folder / "comparison.md", folder / "comparison.csv"
    write_whole(markdown, to_markdown(tables, []))
    write_whole(csv, to_csv_rows(tables).to_csv(index=False))
    paths = [markdown, csv]
    if len(sustained):
        paths.append(folder / "sustained.csv")
        write_whole(paths[-1], for_spreadsheets(sustained).to_csv(index=False))
    if given := answers(figures, complete, jobs):
        wide = (
            console
            if console.is_terminal
            else Console(file=console.file, width=PIPE_WIDTH, markup=False)
        )
        for answer in given:
            console.print()
            wide.print(answer)
    else:
        for table in tables:
            if (table.part, table.workload) not in shown or not table.is_simulated:
                print_table(table, console)
        if len(sustained):
            print_sustained(sustained, console)
    drawn, failures = _drawn(figures, complete, jobs, folder / "figures")
    checks = run_checks(rows, jobs)  # last: all else is on disk, whatever becomes of them
    failures = [*checks.failures, *failures]
    write_whole(markdown, to_markdown(tables, [*checks.lines, *failures]))
    console.print()
    for line in checks.lines:
        console.print(line, highlight=False, markup=False)
    for failure in failures:
        console.print(f"FAILED CHECK: {failure}", style="bold red", highlight=False, markup=False)
    return Presentation([*paths, *drawn], tuple(failures))


def _drawn(
    names: Sequence[str], complete: pd.DataFrame, jobs: Sequence[Job], folder: Path
) -> tuple[list[Path], list[str]]:
    """Files of the figures, and a line for each that could not be drawn."""
    paths: list[Path] = []
    failures: list[str] = []
    for name in names if len(complete) else ():
        try:
            paths += draw_figures([name], complete, jobs, folder)
        except (ConfigError, OSError):
            raise
        except Exception as error:
            failures.append(broken(f"figure {name}", error))
    return paths, failures


def show_tables(
    rows: pd.DataFrame, jobs: Sequence[Job], figures: Sequence[str], console: Console
) -> bool:
    """Print the tables of `rows`, which are some of a study's, and all of these tables'; False
    where its figures have an answer in place of tables."""
    complete = rows[rows["status"] == "complete"] if len(rows) else rows
    if rows.empty or answers(figures, complete, jobs):
        return False
    for table in make_tables(rows, jobs):
        print_table(table, console)
    console.print()
    return True

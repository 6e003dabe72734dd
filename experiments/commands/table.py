"""The comparison of a study's runs as a table, in Markdown, LaTeX or CSV:
`python -m experiments table compare_allocators --format latex --columns utilisation`.

A table a part and workload, a row a strategy and setting: means with 95 % intervals from five
repetitions on, the best of a column in bold (CSV: named), pool pages and tokens, repetitions (n).
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.latex import to_latex
from experiments.provenance import provenance
from experiments.redraw import latest_studies
from experiments.stored import NAMES, StoredStudy, find_study, no_study
from experiments.table_columns import COLUMNS, Column
from experiments.table_output import shown_columns, to_csv_rows, to_markdown
from experiments.tables import Table, derived, make_tables
from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.runs.half_written import write_whole

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}

EXAMPLES = """\
examples:
  python -m experiments table compare_allocators
  python -m experiments table compare_allocators --output compare.tex
  python -m experiments table sweep_page_size --format csv --columns all > points.csv
  python -m experiments table compare_allocators --part waste \\
      --columns utilisation,tail_share,batched_requests --format latex
"""


def main(arguments: Sequence[str]) -> int:
    """Print or write the tables. 0, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    kind = options.format or SUFFIXES.get(getattr(options.output, "suffix", ""), "markdown")
    names = options.studies or tuple(latest_studies(options.results_dir))
    if not names:
        raise ConfigError(no_study(options.results_dir))
    studies = {name: find_study(name, options.results_dir) for name in names}
    tables = {name: tables_of(study, options) for name, study in studies.items()}
    text = _as_text(kind, studies, tables)
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_whole(options.output, text)
        print(options.output)
    return 0


def tables_of(study: StoredStudy, options: argparse.Namespace) -> list[Table]:
    """A study's tables, with the columns that `options` choose. Raises ConfigError for a column or
    a part that there is not."""
    rows = study.rows
    if options.part:
        parts = tuple(dict.fromkeys(rows["part"]))
        if options.part not in parts:
            raise ConfigError(unknown_name(options.part, parts, "part"))
        rows = rows[rows["part"] == options.part]
    if options.columns == "all":
        return make_tables(rows, study.jobs)
    if options.columns:
        chosen = [_column(name, rows) for name in options.columns.split(",")]
        return make_tables(rows, study.jobs, chosen)
    tables = make_tables(rows, study.jobs)
    return [dataclasses.replace(table, blocks=(tuple(shown_columns(table)),)) for table in tables]


def _column(name: str, rows: pd.DataFrame) -> Column:
    """A column of the comparison, or any other figure of a run, whose name has its unit."""
    if name in COLUMNS:
        return COLUMNS[name]
    numbers = derived(rows).select_dtypes("number").columns
    if name not in numbers:
        raise ConfigError(unknown_name(name, tuple(dict.fromkeys((*COLUMNS, *numbers))), "column"))
    return Column(name, name, name.replace("_", " "), digits=3)


def _as_text(kind: str, studies: dict[str, StoredStudy], tables: dict[str, list[Table]]) -> str:
    if kind == "csv":
        frames = [
            to_csv_rows(tables[name]).assign(study=study.record.experiment)
            for name, study in studies.items()
        ]
        return pd.concat(frames, ignore_index=True).to_csv(index=False)
    if kind == "markdown":
        parts = [to_markdown(tables[name], []) for name in studies]
        if len(parts) == 1:
            return parts[0]
        return "\n".join(f"# {name}\n\n{part}" for name, part in zip(studies, parts, strict=True))
    texts = []
    for name, study in studies.items():
        labels = [_label(study.record.experiment, table) for table in tables[name]]
        texts.append(to_latex(tables[name], labels, _origin(study)))
    return "\n".join(texts)


def _label(experiment: str, table: Table) -> str:
    words = [experiment, table.part, table.workload]
    if "timed" in table.title.split(" · "):
        words.append("timed")
    return "tab:" + "-".join(re.sub(r"[^A-Za-z0-9]+", "-", word) for word in words if word)


def _origin(study: StoredStudy) -> list[str]:
    """What the numbers come from, a line each."""
    record, origin = study.record, provenance(study.jobs)
    command = " ".join(["python -m harness", *record.arguments])
    lacking = f", {study.missing} not stored yet" if study.missing else ""
    return [
        f"{record.experiment}@{record.study_id}: {len(study.jobs)} runs{lacking}",
        command,
        f"configs {origin['config_hash']}, revisions {', '.join(origin['git_revisions'])}",
    ]


def _columns_in_words() -> str:
    words = f"columns: {', '.join(COLUMNS)}, or any other number in summary.csv"
    return textwrap.fill(words, 100, subsequent_indent="  ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments table",
        description=__doc__,
        epilog=f"{NAMES}\n\n{_columns_in_words()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="default: all")
    parser.add_argument("--format", choices=tuple(SUFFIXES.values()), help="default: as --output")
    parser.add_argument(
        "--columns", default="", metavar="METRIC,...",
        help="default: those that a run's comparison prints; `all`: every one that files have",
    )  # fmt: skip
    parser.add_argument("--part", default="", help="of the experiment; default: every one")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: print it")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    return parser

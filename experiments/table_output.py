"""The comparison's tables on a terminal, in Markdown and as CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.table_columns import Column
from experiments.tables import Table, TableRow
from harness.measure.statistics import Interval
from harness.runs.stored_text import for_spreadsheets

PIPE_WIDTH = 118
"""Columns of a table that is not printed to a terminal."""

NOT_BOUND = "not memory-bound"
NO_LONGER_BOUND = "not memory-bound, as others here are"
QUEUE_GROWS = "queue grows"


def print_table(table: Table, console: Console) -> None:
    """The table and its notes, in as many blocks as the width asks for. A lone row is a list."""
    if not console.is_terminal:  # it would be taken for 80 columns
        console = Console(file=console.file, width=PIPE_WIDTH, markup=False)
    console.print()
    console.print(Text(table.title, style="bold"))
    for block in table.blocks:
        columns = _shown(table, block)
        if len(table.rows) == 1:
            console.print(_as_list(table, columns))
            continue
        for chunk in _chunks(table, columns, console):
            console.print(_as_table(table, chunk), soft_wrap=True)
    for note in table.notes:
        console.print(Text(note, style="dim"), soft_wrap=False)


def to_markdown(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """All tables with every column, best in bold, the repetitions (n), and the checks' lines."""
    parts = []
    for table in tables:
        columns = all_columns(table)
        heads = [*map(markdown_cell, table.label_heads), *(c.title for c in columns), "n", ""]
        rule = [*("---" for _ in table.label_heads), *("---:" for _ in columns), "---:", "---"]
        body = [heads, rule]
        for row in table.rows:
            cells = [cell_text(row, column, with_interval=True) for column in columns]
            marked = [
                f"**{text}**" if column.metric in row.best else text
                for column, text in zip(columns, cells, strict=True)
            ]
            said = markdown_cell(row.error or _remarks(row))
            body.append([*map(markdown_cell, row.labels), *marked, row.n, said])
        text = "\n".join("| " + " | ".join(line) + " |" for line in body)
        notes = "\n".join(f"- {markdown_cell(in_bold(note).strip('†‡§ '))}" for note in table.notes)
        parts.append(f"## {markdown_cell(table.title)}\n\n{text}\n\n{notes}\n")
    if lines:
        parts.append(
            "## Checks\n\n" + "\n".join(f"- {markdown_cell(line.strip())}" for line in lines) + "\n"
        )
    return "\n".join(parts)


def markdown_cell(text: str) -> str:
    """As Markdown and the HTML within it show it."""
    return re.sub(r"<(?=[\w/!?])", "&lt;", text.replace("|", "\\|").replace("\n", " "))


def to_csv_rows(tables: Sequence[Table]) -> pd.DataFrame:
    """One line a table row: means, half-widths of 95 % intervals, repetitions, what is best."""
    lines = []
    for table in tables:
        columns = all_columns(table)
        for row in table.rows:
            line: dict[str, object] = {"part": table.part, "workload": table.workload}
            heads = [head.replace(" ", "_") for head in table.label_heads]
            line |= dict(zip(heads, row.labels, strict=True))
            for column in columns:
                value = row.cells[column.metric]
                line[column.title] = value.mean * column.scale
                line[f"{column.title} ±"] = value.half_width * column.scale
            line["pool_tokens"] = row.pool_tokens
            line["repetitions"] = row.repetitions
            if not table.is_simulated:
                line["disturbed"] = row.disturbed
            line["best in"] = "; ".join(c.title for c in columns if c.metric in row.best)
            line["note"] = row.error or _remarks(row)
            lines.append(line)
    return for_spreadsheets(pd.DataFrame(lines))


def in_bold(note: str) -> str:
    """A table's note where the best is bold, not starred."""
    return note.replace(": *.", ": bold.")


def shown_columns(table: Table) -> list[Column]:
    """The columns that a terminal shows, in order, each once."""
    columns = [column for block in table.blocks for column in _shown(table, block)]
    return list({column.metric: column for column in columns}.values())


def _chunks(table: Table, columns: Sequence[Column], console: Console) -> list[list[Column]]:
    """`columns` cut so that each piece, beside the labels, fits the console."""
    chunks: list[list[Column]] = [[]]
    for column in columns:
        wider = _as_table(table, [*chunks[-1], column])
        options = console.options.update(width=10 * PIPE_WIDTH)
        if chunks[-1] and console.measure(wider, options=options).maximum > console.width:
            chunks.append([])
        chunks[-1].append(column)
    return chunks


def _as_table(table: Table, columns: Sequence[Column]) -> RichTable:
    rich_table = RichTable(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for head in table.label_heads:
        shown = "page x\npages" if head == "page x pages" else head.replace(" ", "\n")
        left = head == "strategy"
        rich_table.add_column(shown, justify="left" if left else "right", no_wrap=True)
    for column in columns:
        rich_table.add_column(column.head, justify="right", no_wrap=True)
    has_times = any(column.is_time for column in columns)
    if has_times:
        rich_table.add_column("n", justify="right", no_wrap=True)
    for row in table.rows:
        cells = [_marked(row, column) for column in columns]
        if has_times:
            cells.append(Text(row.n))
        rich_table.add_row(*map(Text, row.labels), *cells, style="dim" if row.error else None)
    return rich_table


def _as_list(table: Table, columns: Sequence[Column]) -> RichTable:
    row = table.rows[0]
    grid = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(justify="left", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for head, label in zip(table.label_heads, row.labels, strict=True):
        grid.add_row(head, label)
    for column in columns:
        grid.add_row(column.title, _marked(row, column))
    if any(column.is_time for column in columns):
        grid.add_row("n", row.n)
    return grid


def _shown(table: Table, block: Sequence[Column]) -> list[Column]:
    """Columns for a terminal: no detail, nothing that says nothing of any row."""
    single = len(table.rows) == 1
    return [
        column
        for column in block
        if (single or not column.in_files_only) and not _is_hidden(table, column)
    ]


def _is_hidden(table: Table, column: Column) -> bool:
    means = [row.cells[column.metric].mean for row in table.rows]
    match column.hide_when:
        case "zero":
            return all(math.isnan(mean) or not column.shown(mean) for mean in means)
        case "missing":
            return all(map(math.isnan, means))
        case "never":
            return False


def all_columns(table: Table) -> list[Column]:
    """The columns that files have, in order, each once."""
    unique = {column.metric: column for block in table.blocks for column in block}
    return list(unique.values())


def _marked(row: TableRow, column: Column) -> Text:
    text = cell_text(row, column, with_interval=column.has_interval)
    if column.metric == "saturated_share" and not row.is_memory_bound and not row.error:
        text += "†"
    elif column.metric == "normalised_latency_ms" and row.queue_grows:
        text += "‡"
    elif column.metric in row.best:
        return Text(text + "*", style="bold green")
    return Text(text + " ")


def cell_text(row: TableRow, column: Column, *, with_interval: bool) -> str:
    """A cell's mean, and ± its half-width where it has one; `-` for none."""
    value: Interval = row.cells[column.metric]
    if math.isnan(value.mean):
        return "-"
    text = f"{value.mean * column.scale:,.{column.digits}f}"
    if with_interval and not math.isnan(value.half_width):
        text += f" ±{value.half_width * column.scale:,.{column.digits}f}"
    return text


def _remarks(row: TableRow) -> str:
    remarks = [] if row.is_memory_bound else [NO_LONGER_BOUND if row.is_relieved else NOT_BOUND]
    if row.queue_grows:
        remarks.append(QUEUE_GROWS)
    if row.disturbed:
        remarks.append(f"{row.disturbed} of {row.repetitions} repetitions disturbed")
    return "; ".join(remarks)

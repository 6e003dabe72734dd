"""Tables as the page shows them: text, interval, mark and a value to sort by in every cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.numbers import compact
from experiments.table_columns import Column
from experiments.tables import Table, TableRow


class CellView(NamedTuple):
    """text: as read. interval: `±` half-width, or empty. sort: what it sorts by, None for what is
    missing. mark: `*` for the best of its column, `†`, `‡` and `§` as in the notes."""

    text: str
    interval: str = ""
    sort: float | str | None = None
    mark: str = ""
    is_best: bool = False


class HeadView(NamedTuple):
    """is_number: its cells are numbers, to the right."""

    text: str
    is_number: bool


class TableView(NamedTuple):
    """caption: what it shows. error: of a row's run, by the row's index."""

    caption: str
    heads: tuple[HeadView, ...]
    rows: tuple[tuple[CellView, ...], ...]
    notes: tuple[str, ...] = ()
    errors: Mapping[int, str] = {}


def comparison_view(table: Table) -> TableView:
    """A comparison table with the columns that say something of any row."""
    columns = [c for c in _columns(table) if not _is_empty(table, c)]
    heads = [HeadView(head, index == 1) for index, head in enumerate(table.label_heads)]
    heads += [*(HeadView(column.title, True) for column in columns), HeadView("n", True)]
    rows = []
    for row in table.rows:
        labels = [_label(label, index) for index, label in enumerate(row.labels)]
        n = CellView(f"{row.repetitions}", sort=row.repetitions)
        if row.disturbed:
            n = n._replace(mark=f" ({row.disturbed}§)")
        rows.append((*labels, *(_cell(row, column) for column in columns), n))
    errors = {index: row.error for index, row in enumerate(table.rows) if row.error}
    return TableView(table.title, tuple(heads), tuple(rows), table.notes, errors)


def plain_view(
    caption: str, heads: Sequence[str], lines: Sequence[Sequence[Any]], notes: Sequence[str] = ()
) -> TableView:
    """A table of texts and numbers; a column is one of numbers where all that is in it are."""
    columns = list(zip(*lines, strict=True)) or [() for _ in heads]
    numeric = [all(_is_number(v) or v is None for v in column) for column in columns]
    views = [
        HeadView(head, bool(lines) and is_number)
        for head, is_number in zip(heads, numeric, strict=True)
    ]
    rows = tuple(tuple(_plain(value) for value in line) for line in lines)
    return TableView(caption, tuple(views), rows, tuple(notes))


def _columns(table: Table) -> list[Column]:
    return list({c.metric: c for block in table.blocks for c in block}.values())


def _is_empty(table: Table, column: Column) -> bool:
    """No row has the metric, or all have 0 where that says nothing."""
    means = [row.cells[column.metric].mean for row in table.rows]
    if column.hide_when == "zero":
        return all(math.isnan(mean) or not column.shown(mean) for mean in means)
    return all(map(math.isnan, means))


def _label(label: str, index: int) -> CellView:
    """The pages' column sorts by the page size."""
    first = label.split(" ")[0].replace(",", "")
    return CellView(label, sort=float(first) if index == 1 or _reads_as_number(label) else label)


def _cell(row: TableRow, column: Column) -> CellView:
    value = row.cells[column.metric]
    if math.isnan(value.mean):
        return CellView("-")
    text = f"{value.mean * column.scale:,.{column.digits}f}"
    interval = ""
    if value.half_width > 0:
        interval = f"±{value.half_width * column.scale:,.{column.digits}f}"
    is_best = column.metric in row.best
    mark = "*" if is_best else ""
    if column.metric == "saturated_share" and not row.is_memory_bound and not row.error:
        mark = "†"
    elif column.metric == "normalised_latency_ms" and row.queue_grows:
        mark = "‡"
    return CellView(text, interval, value.mean, mark, is_best)


def _plain(value: Any) -> CellView:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return CellView("-")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return CellView(str(value), sort=str(value))
    text = f"{value:,}" if isinstance(value, int) else compact(value)
    return CellView(text, sort=float(value) if math.isfinite(value) else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""The comparison's tables in LaTeX, for a paper: needs booktabs and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from experiments.table_columns import Column
from experiments.table_output import all_columns, cell_text, in_bold
from experiments.tables import Table, TableRow

PREAMBLE = "% \\usepackage{booktabs}"

COLUMN_CHARACTERS, PAGE_CHARACTERS = 52, 112
"""About as many fit in a line of one column of a page, and of both, in \\small."""

HEAD_CHARACTERS = 12
"""A heading is broken into lines of about as many."""

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    "±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "µ": r"$\mu$", "≥": r"$\ge$",
    "≤": r"$\le$", "†": r"$\dagger$", "‡": r"$\ddagger$", "–": "--", "—": "---", "…": r"\ldots{}",
    "−": "$-$", "\u00a0": "~", "§": r"\S{}",
}  # fmt: skip


def escape(text: str) -> str:
    """`text` as LaTeX prints it. Characters beyond ASCII that it has no way for become `?`."""
    shown = "".join(_ESCAPES.get(character, character) for character in text)
    return shown.encode("ascii", "replace").decode()


def to_latex(tables: Sequence[Table], labels: Sequence[str], comments: Sequence[str]) -> str:
    """A float a table. labels: for \\ref, one a table. comments: lines that LaTeX does not read.

    The best of a column is bold, 95 % intervals are ± what is beside the mean, units stand in the
    heads, and a table's notes below it.
    """
    lines = [f"% {line}" for comment in comments for line in comment.splitlines()]
    floats = [_float(table, label) for table, label in zip(tables, labels, strict=True)]
    return "\n".join([*lines, PREAMBLE, "", *floats])


def _float(table: Table, label: str) -> str:
    columns = all_columns(table)
    is_narrow = _characters(table, columns) <= COLUMN_CHARACTERS
    environment = "table" if is_narrow else "table*"
    blocks = [_tabular(table, block) for block in _blocks(table, columns)]
    notes = " ".join(escape(in_bold(note).rstrip(".")) + "." for note in table.notes)
    lines = [
        rf"\begin{{{environment}}}[t]",
        r"  \centering",
        r"  \small",
        r"  \setlength{\tabcolsep}{4pt}",
        rf"  \caption{{{escape(table.title)}}}",
        rf"  \label{{{label}}}",
        "\n  \\par\\medskip\n".join(blocks),
        rf"  \par\smallskip\footnotesize {notes}",
        rf"\end{{{environment}}}",
        "",
    ]
    return "\n".join(lines)


def _blocks(table: Table, columns: Sequence[Column]) -> list[list[Column]]:
    """`columns` in pieces that fit a page beside the labels."""
    blocks: list[list[Column]] = [[]]
    for column in columns:
        if blocks[-1] and _characters(table, [*blocks[-1], column]) > PAGE_CHARACTERS:
            blocks.append([])
        blocks[-1].append(column)
    return blocks


def _characters(table: Table, columns: Sequence[Column]) -> int:
    """Of a line, with what lies between its cells."""
    widths = [
        max(map(len, names)) for names in zip(*(row.labels for row in table.rows), strict=True)
    ]
    for column in columns:
        cells = [cell_text(row, column, with_interval=True) for row in table.rows if not row.error]
        widths.append(max(map(len, [*cells, *_broken(column.title)])))
    return sum(widths) + 2 * (len(widths) + 1)


def _tabular(table: Table, columns: Sequence[Column]) -> str:
    heads = [*map(_head, table.label_heads), *(_head(c.title, "r") for c in columns), "n"]
    alignment = "l" * len(table.label_heads) + "r" * len(columns) + "r"
    lines = [
        rf"  \begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"    \toprule",
        rf"    {' & '.join(heads)} \\",
        r"    \midrule",
        *(rf"    {_line(row, columns)} \\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    return "\n".join(lines)


def _head(title: str, side: str = "l") -> str:
    """A heading over as many lines as it takes."""
    shown = [escape(line) for line in _broken(title)]
    if len(shown) == 1:
        return shown[0]
    stacked = r" \\ ".join(shown)
    return rf"\shortstack[{side}]{{{stacked}}}"


def _broken(title: str) -> list[str]:
    lines = [""]
    for word in re.split(r" (?!%)", title):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) > HEAD_CHARACTERS:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _line(row: TableRow, columns: Sequence[Column]) -> str:
    labels = [escape(label) for label in row.labels]
    if row.error:
        width = len(columns) + 1
        return " & ".join([*labels, rf"\multicolumn{{{width}}}{{l}}{{failed: see below}}"])
    if not row.is_memory_bound:
        labels[0] += r"$^\dagger$"
    if row.queue_grows:
        labels[0] += r"$^\ddagger$"
    cells = [_cell(row, column) for column in columns]
    return " & ".join([*labels, *cells, escape(row.n)])


def _cell(row: TableRow, column: Column) -> str:
    value = row.cells[column.metric]
    if math.isnan(value.mean):
        return "--"
    mean = _number(value.mean * column.scale, column.digits)
    if column.metric in row.best:
        mean = rf"\mathbf{{{mean}}}"
    if math.isnan(value.half_width):
        return f"${mean}$"
    return rf"${mean} \pm {_number(value.half_width * column.scale, column.digits)}$"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "{,}")

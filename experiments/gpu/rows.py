"""Rows of a stage: written one by one, read again by the stage that goes on and by the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.runs.half_written import write_whole

Row = dict[str, Any]

ROWS_FILE = "rows.jsonl"
DONE = ("ok", "absent")
"""Statuses that a later process takes over; what failed or was cut for time is tried again."""


class DryRowsError(ValueError):
    """Rows of a dry run were about to be shown as figures of a GPU."""


class RowLog:
    """The rows of one stage in `folder`/rows.jsonl, on disk as soon as they are known.

    Every row has `case`, its name within the stage; `status` (ok, failed, absent or cut); `dry`,
    whether it comes from a CPU that went the same way; and `key`. Rows of another key (other
    code, device or options) are dropped when the log is opened, and so are those not DONE.
    """

    def __init__(self, folder: Path, key: str, *, dry: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / ROWS_FILE
        self._key, self._dry = key, dry
        self._rows: dict[str, Row] = {
            row["case"]: row
            for row in read_rows(folder)
            if row["key"] == key and row["dry"] == dry and row["status"] in DONE
        }
        write_whole(self._path, "".join(map(_line, self._rows.values())))

    def is_done(self, case: str) -> bool:
        """Whether `case` has its answer."""
        row = self._rows.get(case)
        return row is not None and row["status"] in DONE

    def add(self, case: str, status: str = "ok", **values: Any) -> Row:
        """Write a row; a later one of the same case takes its place for readers."""
        row: Row = {"case": case, "status": status, **values, "dry": self._dry, "key": self._key}
        self._rows[case] = row
        with self._path.open("a") as file:
            file.write(_line(row))
        return row

    def has(self, case: str) -> bool:
        """Whether there is a row of `case`, whatever it says."""
        return case in self._rows

    def take(self, row: Row) -> None:
        """Write a row that another process made for this key."""
        values = {k: v for k, v in row.items() if k not in ("case", "status", "dry", "key")}
        if row["key"] == self._key and row["dry"] == self._dry:
            self.add(row["case"], row["status"], **values)

    def cases(self, status: str) -> list[str]:
        """Names of the cases that ended so."""
        return [case for case, row in self._rows.items() if row["status"] == status]

    def get(self, case: str) -> Mapping[str, Any]:
        """The row of `case`; KeyError where there is none."""
        return self._rows[case]


def read_rows(folder: Path) -> list[Row]:
    """A stage's rows, the last one of each case; a line that a kill cut short is left out."""
    path = folder / ROWS_FILE
    if not path.is_file():
        return []
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["case"]] = row
    return list(rows.values())


def refuse_dry(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise DryRowsError if any row comes from a dry run."""
    if any(row.get("dry", True) for row in rows):
        raise DryRowsError(
            "these rows come from a dry run on a CPU (DRY=1) and are no figures of a GPU: run "
            "`make gpu` on a machine that has one"
        )


@dataclass(slots=True)
class Budget:
    """Seconds that a stage may take, from when this was made."""

    seconds: float

    def __post_init__(self) -> None:
        self._begin_s = time.monotonic()

    _begin_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds left; negative when they are gone."""
        return self.seconds - (time.monotonic() - self._begin_s)


def _line(row: Row) -> str:
    return json.dumps(row, default=str) + "\n"

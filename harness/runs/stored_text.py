"""Text that was stored, maybe by somebody else, as it can be shown and opened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and line feed: a terminal obeys what they begin."""

_FORMULA = re.compile(r"[=+@]|-[^\s\d.]")
"""What a spreadsheet would compute."""


def read_json(path: Path) -> Any:
    """A file of JSON; control characters in its texts are shown as `\ufffd`. Raises OSError, and
    ValueError for what is no JSON."""
    return _printable(json.loads(path.read_text()))


def printable_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The same of a table's texts."""
    return frame.assign(**{name: frame[name].map(_printable) for name in _texts(frame)})


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` for a CSV file: an apostrophe before texts that begin as a formula does."""
    return frame.assign(**{name: frame[name].map(_no_formula) for name in _texts(frame)})


def _texts(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return _OBEYED.sub("\ufffd", value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    return value

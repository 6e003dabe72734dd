"""Numbers from outside: what a file, a command line or a checkpoint holds as one may be anything.

Whoever reads such a number takes it from here, so that it is finite and in range. Errors are
ValueErrors that begin with NAME=VALUE.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_INT = 2**62
"""So that sums of a few stay within an int64, which records and tables have."""

_MOST_DIGITS = 400
"""Beyond it, `int()` takes time that is quadratic in them, or refuses; a float has at most 309."""

_MOST_SHOWN = 60
_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
_REAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)


def integer(value: object, name: str, low: int = -LARGEST_INT, high: int = LARGEST_INT) -> int:
    """`value`, a number or its decimal text, as a whole number from `low` to `high`; a float such
    as 374.0 is one."""
    number = _parsed(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int):
        if isinstance(number, float) and math.isinf(number):
            raise ValueError(f"{name}={shown(value)} {_range(low, high)}")
        raise ValueError(f"{name}={shown(value)} is not an integer")
    if not low <= number <= high:
        raise ValueError(f"{name}={shown(value)} {_range(low, high)}")
    return number


def real(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value`, a number or its decimal text, as a finite float from `low` to `high`."""
    number = _parsed(value)
    if number is None:
        raise ValueError(f"{name}={shown(value)} is not a number")
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}={shown(value)} must be a finite number")
    if not low <= number <= high:
        raise ValueError(f"{name}={shown(value)} {_range(low, high)}")
    return number


def check_finite(value: object, name: str) -> None:
    """Raise ValueError for a number within `value`, nested lists and mappings, that is not finite
    or has more than 64 bits. name: of `value`, from which the number's is made."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_finite(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, each in enumerate(value):
            check_finite(each, f"{name}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ValueError(f"{name}={shown(value)}: must be at most 2**62, counts are of 64 bits")


def parse_json(text: str) -> Any:
    """The value of a JSON text; numbers that are too long or too large for a float are infinite.
    Raises ValueError, one line, for any other text, and for one that is nested too deeply."""
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        except ValueError:  # `int` refuses thousands of digits
            return json.loads(text, parse_int=_json_int)
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None


def shown(value: object) -> str:
    """`value` as a message quotes it: one line of bounded length."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return f"{'-' if value < 0 else ''}(a number of more than 300 digits)"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _parsed(value: object) -> int | float | None:
    """None for what is no number; infinity for an integer that is too long."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        return None
    if _INTEGER.fullmatch(value):
        return _json_int(value.strip())
    return float(value) if _REAL.fullmatch(value) else None


def _json_int(text: str) -> int | float:
    if len(text) <= _MOST_DIGITS:
        return int(text)
    return -math.inf if text.startswith("-") else math.inf


def _range(low: float, high: float) -> str:
    least, most = (f"{each:,}" if isinstance(each, int) else f"{each:g}" for each in (low, high))
    if low > -LARGEST_INT and high < LARGEST_INT:
        return f"must be from {least} to {most}"
    return f"must be at least {least}" if low > -LARGEST_INT else f"must be at most {most}"

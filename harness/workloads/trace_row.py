"""What every trace reader yields, and how a reader complains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.workloads.context import TextTokenizer


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace, lengths in tokens before scaling.

    arrival_s: seconds from an origin that the trace shares; None where it has no times.
    block_ids, block_len: one id a `block_len` tokens of the prompt, the last block partial;
        equal id = equal prefix up to and including the block.
    prompt_ids, output_ids: tokens of traces that hold text.
    session: requests of one session follow each other, each after the end of the one before.
    """

    prompt_len: int
    output_len: int
    arrival_s: float | None = None
    block_ids: tuple[int, ...] = ()
    block_len: int = 0
    prompt_ids: tuple[int, ...] | None = None
    output_ids: tuple[int, ...] | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What a reader may need beside the path."""

    seed: int
    tokenizer: TextTokenizer


Reader = Callable[[Path, ReadContext], Iterator[TraceRow]]
"""A format's `read`: rows in order of arrival, sessions one after the other."""


def malformed(path: Path, line: int, what: str) -> ValueError:
    """The error for one line (from 1) of a trace."""
    return ValueError(f"{path}:{line}: {what}")


def positive_int(value: object, path: Path, line: int, field: str) -> int:
    """`value` as an integer of at least 1."""
    number = integer(value, path, line, field)
    if number < 1:
        raise malformed(path, line, f"{field}={number} must be at least 1")
    return number


def integer(value: object, path: Path, line: int, field: str) -> int:
    """`value`, a string or a JSON number, as an integer."""
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise malformed(path, line, f"{field}={value!r} is not an integer")


def json_lines(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, object) of each non-empty line; every object holds all `fields`."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise malformed(path, number, f"not JSON: {error}") from None
            if not isinstance(row, dict):
                raise malformed(
                    path, number, f"a JSON object was expected, not {line.strip()[:40]}"
                )
            missing = [field for field in fields if field not in row]
            if missing:
                raise malformed(path, number, f"no {', '.join(missing)}; needs {', '.join(fields)}")
            yield number, row

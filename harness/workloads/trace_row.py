"""What every trace reader yields, how it reads text and numbers, and how it complains."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import numbers
from harness.workloads.context import TextTokenizer

MOST_TOKENS = 2**31 - 1
"""Of a prompt or an output in a trace: records have 32 bits for it."""

MOST_SECONDS = 1e15
"""Of a time in a trace; beyond it a float has no fractions of a second left."""

_LONGEST_LINE = 64 * 2**20
_LONGEST_FILE = 16 * 2**30
"""Characters, after decompression."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace, lengths in tokens before scaling; 0 for a request that has no
    prompt or was given no output, which is not replayed.

    arrival_s: seconds from an origin that the trace shares; None where it has no times.
    block_ids, block_len: one id a `block_len` tokens of the prompt, the last block partial;
        equal id = equal prefix up to and including the block.
    prompt_ids, output_ids: tokens of traces that hold text.
    session: requests of one session follow each other, each after the end of the one before.
    """

    prompt_len: int
    output_len: int
    arrival_s: float | None = None
    block_ids: Sequence[int] = ()
    block_len: int = 0
    prompt_ids: Sequence[int] | NDArray[np.integer] | None = None
    output_ids: Sequence[int] | NDArray[np.integer] | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What a reader may need beside the path."""

    seed: int
    tokenizer: TextTokenizer


Reader = Callable[[Path, ReadContext], Iterator[TraceRow]]
"""A format's `read`: rows in order of arrival, sessions one after the other."""


class Line(NamedTuple):
    """Where a value stands in a trace; `number` counts from 1."""

    path: Path
    number: int

    def malformed(self, what: str) -> ValueError:
        """The error for this line."""
        return ValueError(f"{self.path}:{self.number}: {what}")

    def integer(self, value: object, field: str, low: int, high: int = numbers.LARGEST_INT) -> int:
        """`value`, text or a JSON number, as a whole number from `low` to `high`."""
        try:
            return numbers.integer(value, field, low, high)
        except ValueError as error:
            raise self.malformed(str(error)) from None

    def tokens(self, value: object, field: str) -> int:
        """`value` as a number of tokens."""
        return self.integer(value, field, 0, MOST_TOKENS)

    def real(self, value: object, field: str, low: float, high: float) -> float:
        """`value` as a finite number from `low` to `high`."""
        try:
            return numbers.real(value, field, low, high)
        except ValueError as error:
            raise self.malformed(str(error)) from None

    def seconds(self, value: object, field: str, per_second: float = 1.0) -> float:
        """`value`, of which there are `per_second` to a second, in seconds."""
        most = MOST_SECONDS * per_second
        return self.real(value, field, -most, most) / per_second


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with their ends; unpacked where its name ends in `.gz`. A byte-order
    mark is left out. ValueError for what is no regular file, which might never end."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"{path}: is {what}, and a file is to be read")
    num_read = 0
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        for number in itertools.count(1):
            line = file.readline(_LONGEST_LINE)
            num_read += len(line)
            if len(line) == _LONGEST_LINE or num_read > _LONGEST_FILE:
                limit = f"{_LONGEST_LINE >> 20} MiB, or a file of {_LONGEST_FILE >> 30} GiB"
                raise Line(path, number).malformed(f"a line of more than {limit}: split it")
            if not line:
                return
            yield line


def json_lines(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[Line, Mapping[str, object]]]:
    """(line, object) of each non-empty line; every object holds all `fields`."""
    for number, text in enumerate(text_lines(path), start=1):
        if not text.strip():
            continue
        line = Line(path, number)
        try:
            row = numbers.parse_json(text)
        except ValueError as error:
            raise line.malformed(str(error)) from None
        if not isinstance(row, dict):
            raise line.malformed(f"a JSON object was expected, not {text.strip()[:40]}")
        missing = [field for field in fields if field not in row]
        if missing:
            raise line.malformed(f"no {', '.join(missing)}; needs {', '.join(fields)}")
        yield line, row

"""Records on their way to Parquet files, and columns on their way back, in bounded memory."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.measure.ledger import LedgerEntry, settled
from harness.measure.records import (
    RequestRecord,
    StepRecord,
    draft_columns,
    requests_frame,
    steps_frame,
)
from harness.measure.statistics import Floats

_SETTLING = ("repetition", "replica", "stranded", "refused", "misaligned")
_STEPS_AT_ONCE = 50_000
_TOKENS_AT_ONCE = 1_000_000
_REQUESTS_AT_ONCE = 20_000


CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class RecordsNotWrittenError(OSError):
    """A file of records cannot be written: the disk is full, or no disk to write to. The same
    error of another's, such as an allocator's own, is that run's alone."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise RecordsNotWrittenError(error.errno, error.strerror) from error


class RecordSink(Protocol):
    """Takes the records of one repetition, steps in order, requests as they end."""

    def step(self, record: StepRecord, entry: LedgerEntry, draft: LedgerEntry | None) -> None: ...

    def request(self, record: RequestRecord) -> None: ...

    def settle(self, replica: int) -> None:
        """The strategy of a replica turned out not to place contiguously: its steps of this
        repetition are as `harness.measure.ledger.settled` has them."""
        ...


class KeptRecords:
    """Keeps all records in memory."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.entries: list[LedgerEntry] = []
        self.draft_entries: list[LedgerEntry] = []
        self.requests: list[RequestRecord] = []

    def step(self, record: StepRecord, entry: LedgerEntry, draft: LedgerEntry | None) -> None:
        self.steps.append(record)
        self.entries.append(entry)
        if draft is not None:
            self.draft_entries.append(draft)

    def request(self, record: RequestRecord) -> None:
        self.requests.append(record)

    def settle(self, replica: int) -> None:
        self.entries = [
            settled(entry) if record.replica == replica else entry
            for record, entry in zip(self.steps, self.entries, strict=True)
        ]


class RecordFiles:
    """Writes the records of a run's repetitions, one after the other, to steps.parquet and
    requests.parquet in `folder`.

    A row group holds rows of one repetition, at most as many as are kept in memory at once.
    Requests stand in the order in which they ended. To be used in a `with` statement; the files
    are whole after it.
    """

    def __init__(self, folder: Path) -> None:
        self._steps = _Table(folder / "steps.parquet")
        self._requests = _Table(folder / "requests.parquet")
        self._repetition = -1
        self._step_rows: list[tuple[Any, ...]] = []
        self._has_draft = False
        self._settled: set[tuple[int, int]] = set()
        self._request_rows: list[RequestRecord] = []
        self._num_tokens = 0

    def begin_repetition(self) -> None:
        """What comes now is of the next one."""
        self._flush()
        self._repetition += 1

    def step(self, record: StepRecord, entry: LedgerEntry, draft: LedgerEntry | None) -> None:
        self._has_draft = draft is not None
        self._step_rows.append(record + entry + (draft or ()))
        if len(self._step_rows) >= _STEPS_AT_ONCE:
            self._flush_steps()

    def request(self, record: RequestRecord) -> None:
        self._request_rows.append(record)
        self._num_tokens += record.num_output_tokens
        if self._num_tokens >= _TOKENS_AT_ONCE or len(self._request_rows) >= _REQUESTS_AT_ONCE:
            self._flush_requests()

    def settle(self, replica: int) -> None:
        self._settled.add((self._repetition, replica))

    def steps_of(self, repetition: int) -> StoredColumns:
        """The steps of a repetition, once the files are whole."""
        return self._steps.of(repetition)

    def requests_of(self, repetition: int) -> StoredColumns:
        """The requests of a repetition, once the files are whole."""
        return self._requests.of(repetition)

    def __enter__(self) -> RecordFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
            if self._steps.is_empty:  # a run in which nothing ran has files, too
                self._steps.write(0, steps_frame([], []))
            if self._requests.is_empty:
                self._requests.write(0, requests_frame([]))
        self._steps.close()
        self._requests.close()
        if error is None and self._settled:
            self._steps.change(self._settle, _SETTLING)

    def _settle(self, frame: pd.DataFrame) -> bool:
        """Settle the rows that are to be; False where there are none."""
        keys = zip(frame["repetition"], frame["replica"], strict=True)
        provisional = (frame["stranded"] > 0) | (frame["misaligned"] > 0)
        rows = provisional & np.fromiter((k in self._settled for k in keys), bool, len(frame))
        frame.loc[rows, "refused"] += frame.loc[rows, "stranded"]
        frame.loc[rows, ["stranded", "misaligned"]] = 0
        return bool(rows.any())

    def _flush(self) -> None:
        if self._step_rows:
            self._flush_steps()
        if self._request_rows:
            self._flush_requests()

    def _flush_steps(self) -> None:
        names = [*StepRecord._fields, *LedgerEntry._fields]
        if self._has_draft:
            names += draft_columns()
        self._steps.write(self._repetition, pd.DataFrame(self._step_rows, columns=names))
        self._step_rows = []

    def _flush_requests(self) -> None:
        self._requests.write(self._repetition, requests_frame(self._request_rows))
        self._request_rows = []
        self._num_tokens = 0


class _Table:
    """One growing Parquet file, a row group a write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._repetitions: list[int] = []

    @property
    def is_empty(self) -> bool:
        return self._writer is None

    def write(self, repetition: int, frame: pd.DataFrame) -> None:
        frame.insert(0, "repetition", repetition)
        schema = _schema(frame) if self._writer is None else self._writer.schema
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        with _writing():
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
            self._writer.write_table(table, row_group_size=max(1, len(frame)))
        self._repetitions.append(repetition)

    def close(self) -> None:
        if self._writer is not None:
            with _writing():
                self._writer.close()

    def change(self, change: Callable[[pd.DataFrame], bool], columns: Sequence[str]) -> None:
        """Write the file again with its row groups as `change` leaves them, if it changes any. It
        returns whether it did, and looks at `columns` only."""
        file = pq.ParquetFile(self._path)
        numbers = range(file.num_row_groups)
        if not any(change(file.read_row_group(i, columns=columns).to_pandas()) for i in numbers):
            return
        other = _Table(self._path.with_suffix(".settled"))
        for repetition, number in zip(self._repetitions, numbers, strict=True):
            frame = file.read_row_group(number).to_pandas()
            change(frame)
            other.write(repetition, frame.drop(columns="repetition"))
        other.close()
        other._path.replace(self._path)

    def of(self, repetition: int) -> StoredColumns:
        groups = [i for i, each in enumerate(self._repetitions) if each == repetition]
        return StoredColumns(self._path, groups)


_LISTS: Mapping[str, pa.DataType] = {
    "itl_ms": pa.float64(),
    "margins": pa.float64(),
    "sequence_lens": pa.int64(),
    "chosen_ids": pa.int64(),
}


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """Of the frame, with the types that empty lists do not tell."""
    plain = pa.Schema.from_pandas(frame.drop(columns=[c for c in _LISTS if c in frame]), False)
    fields = {field.name: field for field in plain}
    for name in frame.columns:
        if name in _LISTS:
            fields[name] = pa.field(name, pa.list_(_LISTS[name]))
        elif pa.types.is_null(fields[name].type):
            fields[name] = pa.field(name, pa.string())
    return pa.schema([fields[name] for name in frame.columns])


class Columns(Protocol):
    """Rows by column: a DataFrame, or what is read from a file column by column."""

    def __getitem__(self, name: str) -> pd.Series: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...


class StoredColumns:
    """Some row groups of a Parquet file; a column is read each time it is asked for."""

    def __init__(self, path: Path, row_groups: Sequence[int]) -> None:
        self._file = pq.ParquetFile(path)
        self._row_groups = list(row_groups)

    def __len__(self) -> int:
        groups = self._file.metadata
        return sum(groups.row_group(index).num_rows for index in self._row_groups)

    def __contains__(self, name: object) -> bool:
        return name in self._file.schema_arrow.names

    def __getitem__(self, name: str) -> pd.Series:
        return self.frame([name])[name]

    def frame(self, names: Sequence[str]) -> pd.DataFrame:
        """Some columns."""
        table = self._file.read_row_groups(self._row_groups, columns=list(names))
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def chunks(self, names: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Some columns, a row group at a time."""
        for index in self._row_groups:
            yield self._file.read_row_group(index, columns=list(names)).to_pandas()


def without_tokens(requests: Columns) -> pd.DataFrame:
    """One value a column and request: all columns but the lists."""
    if isinstance(requests, StoredColumns):
        return requests.frame([name for name in RequestRecord._fields if name not in _LISTS])
    assert isinstance(requests, pd.DataFrame)
    return requests


class TokenTimes(NamedTuple):
    """Output tokens of some finished requests. gaps_ms: from each token to the next, all
    requests' one after the other; counts: how many are whose."""

    first_token_s: Floats
    gaps_ms: Floats
    counts: Floats

    def times_s(self) -> Floats:
        """When each token came."""
        times = [np.zeros(0)]
        ends = np.cumsum(self.counts.astype(np.int64))
        for first_s, gaps in zip(
            self.first_token_s, np.split(self.gaps_ms, ends[:-1]), strict=True
        ):
            times.append(first_s + np.concatenate(([0.0], np.cumsum(gaps) / 1e3)))
        return np.concatenate(times)


def token_times(requests: Columns) -> Iterator[TokenTimes]:
    """Of the finished ones, some at a time where they are read from a file."""
    names = ("status", "first_token_s", "itl_ms")
    chunks: Iterable[pd.DataFrame]
    if isinstance(requests, StoredColumns):
        chunks = requests.chunks(names)
    else:
        chunks = [pd.DataFrame({name: requests[name] for name in names})]
    for chunk in chunks:
        done = chunk[chunk["status"] == "finished"]
        if len(done):
            lists = [np.asarray(gaps, dtype=np.float64) for gaps in done["itl_ms"]]
            yield TokenTimes(
                done["first_token_s"].to_numpy(dtype=np.float64),
                np.concatenate(lists),
                np.array([len(gaps) for gaps in lists], dtype=np.float64),
            )

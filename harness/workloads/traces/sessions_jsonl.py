"""Agent sessions as text (LMCache's agent traces): each input extends the one before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.workloads.trace_row import ReadContext, TraceRow, json_lines, malformed

FIELDS = ("timestamp", "input", "output", "session_id")


class _Turn(NamedTuple):
    timestamp_us: float
    path: Path
    line: int
    prompt: str
    output: str


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows session by session in order of their starts, turns by time.

    `path` is a file or a folder of .jsonl files. Only what a turn adds to the text before is
    tokenised, so that its tokens extend the earlier turn's whatever the tokenizer merges.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: holds no .jsonl files")
    sessions: dict[str, list[_Turn]] = defaultdict(list)
    for file in files:
        for number, row in json_lines(file, FIELDS):
            sessions[str(row["session_id"])].append(_turn(file, number, row))
    for turns in sessions.values():
        turns.sort(key=lambda turn: turn.timestamp_us)
    for name, turns in sorted(sessions.items(), key=lambda item: item[1][0].timestamp_us):
        yield from _session(name, turns, context)


def _turn(path: Path, line: int, row: object) -> _Turn:
    assert isinstance(row, dict)
    timestamp = row["timestamp"]
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float):
        raise malformed(path, line, f"timestamp={timestamp!r} is not a number")
    for field in ("input", "output"):
        if not isinstance(row[field], str) or not row[field]:
            raise malformed(path, line, f"{field}={row[field]!r} is not a text of some length")
    return _Turn(timestamp, path, line, row["input"], row["output"])


def _session(name: str, turns: list[_Turn], context: ReadContext) -> Iterator[TraceRow]:
    encode = context.tokenizer.encode
    text = ""
    prompt_ids: tuple[int, ...] = ()
    for turn in turns:
        if not turn.prompt.startswith(text) or turn.prompt == text:
            raise malformed(
                turn.path, turn.line, f"input does not extend session {name}'s input before"
            )
        added = encode(turn.prompt[len(text) :], add_special_tokens=False)
        text, prompt_ids = turn.prompt, (*prompt_ids, *added)
        output_ids = tuple(encode(turn.output, add_special_tokens=False))
        yield TraceRow(
            prompt_len=len(prompt_ids),
            output_len=len(output_ids),
            arrival_s=turn.timestamp_us / 1e6,
            prompt_ids=prompt_ids,
            output_ids=output_ids,
            session=name,
        )

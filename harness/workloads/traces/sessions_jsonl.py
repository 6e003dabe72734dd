"""Agent sessions as text (LMCache's agent traces): each input extends the one before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.numbers import shown
from harness.workloads.trace_row import Line, ReadContext, TraceRow, json_lines

FIELDS = ("timestamp", "input", "output", "session_id")


class _Turn(NamedTuple):
    arrival_s: float
    line: Line
    prompt: str
    output: str


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Rows session by session in order of their starts, turns by time; timestamps are microseconds.

    `path` is a file or a folder of .jsonl or .jsonl.gz files. Only what a turn adds to the text
    before is tokenised, so that its tokens extend the earlier turn's whatever the tokenizer merges.
    """
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if not files:
        raise ValueError(f"{path}: holds no .jsonl files")
    sessions: dict[str, list[_Turn]] = defaultdict(list)
    for file in files:
        for line, row in json_lines(file, FIELDS):
            name = row["session_id"]
            if not isinstance(name, str | int):
                raise line.malformed(f"session_id={shown(name)} is not a text or an integer")
            sessions[str(name)].append(_turn(line, row))
    for turns in sessions.values():
        turns.sort(key=lambda turn: turn.arrival_s)
    for name, turns in sorted(sessions.items(), key=lambda item: item[1][0].arrival_s):
        yield from _session(name, turns, context)


def _turn(line: Line, row: Mapping[str, object]) -> _Turn:
    arrival_s = line.seconds(row["timestamp"], "timestamp", per_second=1e6)
    return _Turn(arrival_s, line, _text(line, row, "input"), _text(line, row, "output"))


def _text(line: Line, row: Mapping[str, object], field: str) -> str:
    text = row[field]
    if not isinstance(text, str) or not (text or field == "output"):
        raise line.malformed(f"{field}={shown(text)} is not a text of some length")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise line.malformed(f"{field} holds half of a surrogate pair") from None
    return text


def _session(name: str, turns: list[_Turn], context: ReadContext) -> Iterator[TraceRow]:
    """Its rows, whose prompts are views of the longest one."""
    encode = context.tokenizer.encode
    text = ""
    prompt_ids: list[int] = []
    prompt_lens = []
    for turn in turns:
        if not turn.prompt.startswith(text) or turn.prompt == text:
            raise turn.line.malformed(f"input does not extend session {shown(name)}'s input before")
        prompt_ids += encode(turn.prompt[len(text) :], add_special_tokens=False)
        prompt_lens.append(len(prompt_ids))
        text = turn.prompt
    ids = np.array(prompt_ids, dtype=np.int32)
    for turn, prompt_len in zip(turns, prompt_lens, strict=True):
        output_ids = np.array(encode(turn.output, add_special_tokens=False), dtype=np.int32)
        yield TraceRow(
            prompt_len=prompt_len,
            output_len=len(output_ids),
            arrival_s=turn.arrival_s,
            prompt_ids=ids[:prompt_len],
            output_ids=output_ids,
            session=name,
        )

"""What a page of the documentation asks a reader to do: files to write, and commands with what
they print.

A command is a line that begins with `$ ` in a block fenced as ```console, up to the last line that
it is continued to with a backslash; what follows it in the block is its output. HTML comments
directly above a block say what it is:

    <!-- file: mine.py -->          the block is that file
    <!-- edit: mine.py -->          the block is a change to it: lines that stay, `-` old, `+` new
    <!-- not run: needs a GPU -->   no test runs its commands, and why
    <!-- slow: trains a model -->   only a slow test runs them, and why
    <!-- shown: A ... B -->         of the last command's output: from the first line that begins
                                    with A to the next that begins with B; `all` for all of it
    <!-- shown once: A ... B -->    likewise, of times and rates, which differ from run to run

`<!-- in a checkout -->` anywhere on a page: its files belong into the project's own folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent

_BLOCK = re.compile(
    r"^(?P<marks>(?:<!-- [^\n]* -->\n)*)```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- (file|edit|not run|slow|shown|shown once)(?:: ([^\n]*?))? -->")


class PageError(ValueError):
    """A page is written in a way that cannot be read: names the page and the line."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file that the reader writes."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PageEdit:
    """A change that the reader makes to a file: `old`, which is in it once, becomes `new`."""

    name: str
    old: str
    new: str

    def made_to(self, text: str) -> str:
        """The changed file. Raises PageError where `old` is not in it exactly once."""
        if text.count(self.old) != 1:
            raise PageError(f"{self.name}: has not, or not once:\n{self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows of an output: from the line that begins with `first` to the next one that
    begins with `last`, both included; empty for everything. is_exact: it is the same each time."""

    first: str
    last: str
    is_exact: bool

    def of(self, output: str) -> str:
        """The chosen lines of `output`. Raises PageError where it has no such lines."""
        lines = [line.rstrip() for line in output.strip("\n").splitlines()]
        if not self.first:
            return "\n".join(lines)
        begin = _index(lines, self.first, 0)
        end = _index(lines, self.last, begin) if self.last else begin
        return "\n".join(lines[begin : end + 1])


@dataclass(frozen=True, slots=True)
class PageCommand:
    """A command that the reader types. output: as the page has it. span: the place of `output` in
    the page's text. not_run, slow: the reason, or empty."""

    line: int
    command: str
    output: str
    span: tuple[int, int]
    shown: Shown | None
    not_run: str
    slow: str


def pages() -> list[Path]:
    """Every page, the index first."""
    return sorted(DOCS.rglob("*.md"), key=lambda path: (path.name != "README.md", path))


Step = PageFile | PageEdit | PageCommand


def read_page(path: Path) -> list[Step]:
    """What the page asks for, in order."""
    text = path.read_text()
    steps: list[Step] = []
    for block in _BLOCK.finditer(text):
        marks = {kind: value or "" for kind, value in _MARK.findall(block["marks"])}
        if "file" in marks:
            steps.append(PageFile(marks["file"], block["text"]))
        elif "edit" in marks:
            lines = block["text"].splitlines(keepends=True)
            sides = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
            steps.append(PageEdit(marks["edit"], *sides))
        elif block["language"] == "console":
            line = text.count("\n", 0, block.start("text")) + 1
            try:
                steps += _commands(block["text"], block.start("text"), line, marks)
            except PageError as error:
                raise PageError(f"{path}: {error}") from error
        elif marks:
            raise PageError(f"{path}: {sorted(marks)} above a block that is not `console`")
    return steps


def is_in_a_checkout(path: Path) -> bool:
    """The page's files belong into the project's own folders."""
    return "<!-- in a checkout -->" in path.read_text()


def with_outputs(text: str, outputs: Sequence[tuple[PageCommand, str]]) -> str:
    """A page's text with these outputs in the place of what it shows."""
    for command, output in sorted(outputs, key=lambda pair: pair[0].span, reverse=True):
        begin, end = command.span
        text = f"{text[:begin]}{output}\n{text[end:]}"
    return text


def _commands(
    text: str, offset: int, first_line: int, marks: dict[str, str]
) -> Iterator[PageCommand]:
    starts = [found.start() for found in re.finditer(r"^\$ ", text, re.MULTILINE)]
    if not starts or starts[0] != 0:
        raise PageError(f"line {first_line}: a console block begins with a command (`$ ...`)")
    shown = _shown(marks)
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        is_last = end == len(text)
        command = _command_text(text[start:end])
        begin = start + len(command) + 1
        output = text[begin:end].rstrip("\n")
        line = first_line + text.count("\n", 0, start)
        if output and "not run" not in marks and not (is_last and shown):
            raise PageError(f"line {line}: shows output, and no mark says which")
        yield PageCommand(
            line,
            command.removeprefix("$ "),
            output,
            (offset + begin, offset + end),
            shown if is_last else None,
            marks.get("not run", ""),
            marks.get("slow", ""),
        )


def _command_text(text: str) -> str:
    lines = text.splitlines()
    count = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\"))
    return "\n".join(lines[:count])


def _shown(marks: dict[str, str]) -> Shown | None:
    for kind in ("shown", "shown once"):
        if kind in marks:
            text = "" if marks[kind] == "all" else marks[kind]
            first, _, last = text.partition(" ... ")
            return Shown(first, last, kind == "shown")
    return None


def _index(lines: Sequence[str], beginning: str, start: int) -> int:
    for index in range(start, len(lines)):
        if lines[index].lstrip().startswith(beginning):
            return index
    raise PageError(f"no line from {start} on begins with {beginning!r}:\n" + "\n".join(lines))

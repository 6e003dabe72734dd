"""Where the links of the documentation's pages lead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


class Link(NamedTuple):
    """A link as written on `page`. file: that it leads to. anchor: in that file, or empty."""

    page: Path
    target: str
    file: Path
    anchor: str


def links(page: Path) -> Iterator[Link]:
    """The links of `page` to files of this project; others are left out."""
    for target in _LINK.findall(_prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page.resolve()
        yield Link(page, target, file, anchor)


def anchors(page: Path) -> set[str]:
    """Names of the page's headings, as GitHub forms them; a repeated one gets -1, -2."""
    found: set[str] = set()
    text = _FENCED.sub("", page.read_text())
    for heading in _HEADING.findall(text):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found.add(f"{name}-{same}" if same else name)
    return found


def broken(pages: Sequence[Path]) -> list[str]:
    """Links that lead nowhere, each with its page."""
    wrong = []
    for page in pages:
        for link in links(page):
            is_wrong = not link.file.exists()
            if not is_wrong and link.anchor:
                is_wrong = link.anchor not in anchors(link.file)
            if is_wrong:
                wrong.append(f"{page.name}: {link.target}")
    return wrong


def reachable(start: Path) -> set[Path]:
    """Pages that a reader comes to from `start` by links."""
    seen: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md" and page.is_file():
            seen.add(page)
            waiting += [link.file for link in links(page)]
    return seen


def _prose(page: Path) -> str:
    return _INLINE_CODE.sub("", _FENCED.sub("", page.read_text()))

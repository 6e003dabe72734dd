"""Generated blocks of pages, from `<!-- generated: NAME -->` to `<!-- end -->`."""

from __future__ import annotations

import re


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with the block `name` holding `content`; it must be there exactly once."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda m: f"{m[1]}{content}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} blocks named {name}, not one")
    return filled

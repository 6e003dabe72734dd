"""Fills in what the pages of docs/ show of their commands' output, by running them, and the list
of commands that no test runs: `python docs/make_docs.py [PAGE ...]`.

A page's commands run in order, in a fresh folder; see page_commands.py for how a page says what is
shown. Blocks `<!-- generated: ... -->` of single pages have scripts of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from page_blocks import replace_block
from page_commands import (
    DOCS,
    PageCommand,
    is_in_a_checkout,
    pages,
    read_page,
    with_outputs,
)
from page_runner import Runner, as_typed, copy_checkout, do_step, warm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: all")
    given = parser.parse_args()
    with warm() as run:
        if not all(fill(page, run) for page in given.pages or pages()):
            return 1
    index = DOCS / "README.md"
    index.write_text(replace_block(index.read_text(), "not_run", not_run(pages())))
    return 0


def fill(page: Path, run: Runner) -> bool:
    """Put fresh output into `page`; false, and nothing written, where a command fails."""
    steps = read_page(page)
    shown = [isinstance(step, PageCommand) and step.shown is not None for step in steps]
    if not any(shown):
        return True
    outputs: list[tuple[PageCommand, str]] = []
    with tempfile.TemporaryDirectory() as name:
        if is_in_a_checkout(page):
            copy_checkout(Path(name))
            run = as_typed
        for step in steps[: len(shown) - shown[::-1].index(True)]:
            if isinstance(step, PageCommand) and step.not_run:
                continue
            done = do_step(step, Path(name), run)
            if done is None or not isinstance(step, PageCommand):
                continue
            print(f"{page.name}:{step.line}: {step.command}", flush=True)
            if done.status != 0:
                print(f"exit status {done.status}\n{done.output}", file=sys.stderr)
                return False
            if step.shown is not None:
                outputs.append((step, step.shown.of(done.output)))
    page.write_text(with_outputs(page.read_text(), outputs))
    return True


def not_run(paths: Sequence[Path]) -> str:
    """A table of the commands that no test runs, by page, and why."""
    lines = ["| page | command | why no test runs it |", "|---|---|---|"]
    for path in paths:
        for step in read_page(path):
            if isinstance(step, PageCommand) and step.not_run:
                command = " ".join(step.command.split("  #")[0].replace("\\\n", " ").split())
                where = path.relative_to(DOCS)
                escaped = command.replace("|", "\\|")
                lines.append(f"| [{where}]({where}) | `{escaped}` | {step.not_run} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

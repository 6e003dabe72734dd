"""Fills the generated blocks of README.md with the real output of the commands they name.

A block lies between `<!-- generated: NAME -->` and `<!-- end -->`. Of a long output the README
shows the first table and the closing lines; all of it goes to docs/output/. Runs go to
results/, so what is stored is not run again; `--only NAME` fills one block. The section on GPUs
(`--only performance`) is there if results/reference/gpu is, and comes from there alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from make_performance import section, with_performance

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PERFORMANCE = "performance"
MAX_RUN_LINES = 4
TABLE_TITLE = re.compile(r"^\w+ · .+ · (simulated|timed)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted([*BLOCKS, PERFORMANCE]))
    chosen = parser.parse_args().only
    text = README.read_text()
    if chosen in (None, PERFORMANCE):
        content = section(ROOT / "results/reference/gpu", ROOT / "docs/images", ROOT)
        text = with_performance(text, content)
    for name, fill in BLOCKS.items():
        if chosen in (None, name):
            text = replace_block(text, name, fill())
    README.write_text(text)


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with the block `name` holding `content`; it must be there exactly once."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda m: f"{m[1]}{content}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} blocks named {name}, not one")
    return filled


def command_output(*arguments: str) -> str:
    """What `python -m MODULE ARGUMENTS` prints, long lists of runs cut to their first lines."""
    return script_output("-m", *arguments)


def script_output(*arguments: str) -> str:
    """What `python ARGUMENTS` prints, cut likewise."""
    environment = {**os.environ, "COLUMNS": "110", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(cut_run_lines(lines)).strip("\n")


def cut_run_lines(lines: list[str]) -> list[str]:
    """Keep the first few `[k/n] ...` lines and say how many follow."""
    is_run = [bool(re.match(r"\[ *\d+/\d+\] ", line)) for line in lines]
    if sum(is_run) <= MAX_RUN_LINES + 1:
        return lines
    kept, seen = [], 0
    for line, run in zip(lines, is_run, strict=True):
        seen += run
        if not run or seen <= MAX_RUN_LINES:
            kept.append(line)
        elif seen == MAX_RUN_LINES + 1:
            kept.append(f"... {sum(is_run) - MAX_RUN_LINES} more lines, one a run ...")
    return kept


def fenced(command: str, output: str) -> str:
    return f"```console\n$ {command}\n{output}\n```"


def excerpt(output: str, whole: Path) -> str:
    """The first table and the closing checks of `output`, all of which goes to `whole`."""
    whole.parent.mkdir(exist_ok=True)
    whole.write_text(output + "\n")
    lines = output.splitlines()
    tables = [i for i, line in enumerate(lines) if TABLE_TITLE.match(line)]
    closing = next(i for i, line in enumerate(lines) if line.startswith("ledger classes sum"))
    if len(tables) < 2:
        return output
    skipped = f"... {len(tables) - 1} more tables: {whole.relative_to(ROOT)} ..."
    return "\n".join([*lines[: tables[1]], skipped, "", *lines[closing:]])


def picture(name: str, source: str, alt: str) -> str:
    """Copy a figure of results/ to docs/images/ and show it."""
    target = ROOT / f"docs/images/{name}.png"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "results" / source, target)
    return f"![{alt}]({target.relative_to(ROOT)})"


def single() -> str:
    return fenced("python -m harness", command_output("harness"))


def sweep() -> str:
    output = command_output("harness", "experiment=sweep_page_size")
    shown = excerpt(output, ROOT / "docs/output/sweep_page_size.txt")
    return fenced("make sweep", shown)


def sweep_figure() -> str:
    return picture(
        "page_size_waste",
        "sweep_page_size/figures/page_size_waste.png",
        "Waste by class against page size, with contiguous strategies as reference lines",
    )


def compare() -> str:
    output = command_output("harness", "experiment=compare_allocators")
    shown = excerpt(output, ROOT / "docs/output/compare_allocators.txt")
    return fenced("python -m harness experiment=compare_allocators", shown)


def compare_figure() -> str:
    return picture(
        "compare_fig2",
        "compare_allocators/figures/compare_fig2.png",
        "Memory by the PagedAttention paper's classes: published and measured here",
    )


def peers() -> str:
    arguments = "--repetitions 1 --peers engine,generate:16,generate:32,generate_batch"
    output = script_output("-m", "benchmarks.peers", *arguments.split())
    return fenced(f"python -m benchmarks.peers {arguments}", output)


def example() -> str:
    source = (ROOT / "docs/examples/mine.py").read_text().rstrip()
    return f"```python\n{source}\n```"


def contract() -> str:
    return fenced(
        "make contract A=docs/examples/mine.py:Mine",
        command_output("allocators.contract", "docs/examples/mine.py:Mine"),
    )


def memory_map() -> str:
    command_output("harness", "experiment=memory_map")
    return picture(
        "memory_map",
        "memory_map/figures/memory_map.png",
        "The pool over time under three strategies",
    )


def modes() -> str:
    return fenced("make modes", command_output("experiments", "modes"))


def sharing_figure() -> str:
    command_output("harness", "experiment=beam_search")
    return picture(
        "beam_search_saved",
        "beam_search/figures/beam_search_saved.png",
        "Pages that beams share: published, simulated, and with a small model",
    )


def motivation() -> str:
    command_output("harness", "experiment=motivation")
    return picture(
        "motivation",
        "motivation/figures/motivation.png",
        "KV bytes of common models, waste of reserving the bound, and requests that fit",
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "memory_map": memory_map,
    "single": single,
    "sweep": sweep,
    "sweep_figure": sweep_figure,
    "compare": compare,
    "compare_figure": compare_figure,
    "modes": modes,
    "sharing_figure": sharing_figure,
    "motivation": motivation,
    "peers": peers,
    "example": example,
    "contract": contract,
}

if __name__ == "__main__":
    main()

"""Make data/sharegpt_quantiles.csv out of a CSV of (prompt_tokens, output_tokens) pairs.

    python -m harness.workloads.make_sharegpt_table PAIRS.csv [OUT.csv]

Only a joint quantile table leaves this script, no pairs: prompts are cut into bins by rank,
outputs within a bin by rank again, both finer in the upper tail, and each cell keeps its
number of pairs and its two means, rounded. Deterministic.
"""

from __future__ import annotations

import csv
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from harness.workloads.lengths import SHAREGPT_TABLE
from harness.workloads.streams import Floats, Ints

MAX_LEN = 2048
PROMPT_LEVELS: Floats = np.concatenate(
    [np.linspace(0, 0.9, 28), np.linspace(0.9, 0.98, 13)[1:], np.linspace(0.98, 1, 14)[1:]]
)
OUTPUT_LEVELS: Floats = np.concatenate(
    [np.linspace(0, 0.8, 13), np.linspace(0.8, 0.96, 7)[1:], np.linspace(0.96, 1, 7)[1:]]
)
HEADER = """\
# Joint quantile table of ShareGPT prompt and output lengths in OPT tokens: cell means of
# {pairs} pairs with prompt + output < {max_len}, made by harness.workloads.make_sharegpt_table
# from the lengths in the SOSP 2023 PagedAttention artifact's ShareGPT data. Lengths only, no text.
"""


def quantile_cells(prompts: Ints, outputs: Ints) -> list[tuple[int, int, int]]:
    """(pairs, mean prompt, mean output) of each cell, in order of prompt, then output."""
    order = np.lexsort((outputs, prompts))
    prompts, outputs = prompts[order], outputs[order]
    cells = []
    for rows in _cut(len(prompts), PROMPT_LEVELS):
        in_bin = rows[np.argsort(outputs[rows], kind="stable")]
        for part in _cut(len(in_bin), OUTPUT_LEVELS):
            cell = in_bin[part]
            cells.append(
                (len(cell), round(prompts[cell].mean()), max(1, round(outputs[cell].mean())))
            )
    return cells


def _cut(count: int, levels: Floats) -> list[Ints]:
    edges = np.unique(np.rint(levels * count).astype(np.int64))
    return [np.arange(low, high) for low, high in pairwise(edges.tolist())]


def main(source: Path, target: Path) -> None:
    with source.open(newline="", encoding="utf-8") as file:
        pairs = [(int(r["prompt_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    kept = np.array([p for p in pairs if sum(p) < MAX_LEN], dtype=np.int64)
    cells = quantile_cells(kept[:, 0], kept[:, 1])
    lines = [HEADER.format(pairs=len(kept), max_len=MAX_LEN), "pairs,prompt,output\n"]
    lines += [f"{pairs_},{prompt},{output}\n" for pairs_, prompt, output in cells]
    target.write_text("".join(lines), encoding="utf-8")
    print(f"{target}: {len(cells)} cells of {len(kept)} pairs, means {kept.mean(axis=0)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m harness.workloads.make_sharegpt_table PAIRS.csv [OUT.csv]")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else SHAREGPT_TABLE)

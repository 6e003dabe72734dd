"""Prompts for the models of `byte_models`: text that they have not seen, as a trace.

Each is a stretch of the text from the start of a word and the stretch that follows it. Lengths
are spread like those of Alpaca's instructions, but given in bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.commands.byte_models import HELD_OUT_FRACTION, shipped_text
from harness.runs.half_written import write_whole
from harness.workloads.config import WorkloadConfig
from harness.workloads.lengths import sampler
from harness.workloads.streams import Stream, rng

_EXAMPLES = """\
examples:
  python -m experiments byte_prompts --out byte_models/prompts.jsonl
  python -m harness model=hub model.path=byte_models/target workload=trace \\
      workload.format=sessions_jsonl workload.path=byte_models/prompts.jsonl \\
      workload.arrivals=all_at_once                                # serve them
"""


def text_prompts(text: str, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs of a prompt and what follows it, from the last tenth of `text`.

    Raises ValueError where that is too short for the longest pair.
    """
    held_out = text[-round(len(text) * HELD_OUT_FRACTION) :]
    generator = rng(seed, Stream.LENGTHS)
    prompts, outputs = sampler(WorkloadConfig(lengths="alpaca_like"))(generator, count)
    longest = int((prompts + outputs).max())
    starts = [at + 1 for at, mark in enumerate(held_out) if mark == " "]
    starts = [at for at in starts if at + longest <= len(held_out)]
    if not starts:
        raise ValueError(
            f"the {len(held_out)} characters held out have no {longest} in a row from the start "
            "of a word: give a longer text, or fewer prompts"
        )
    pairs = []
    for at, prompt, output in zip(
        generator.choice(starts, count), prompts.tolist(), outputs.tolist(), strict=True
    ):
        pairs.append((held_out[at : at + prompt], held_out[at + prompt : at + prompt + output]))
    return pairs


def write_trace(pairs: Sequence[tuple[str, str]], path: Path) -> None:
    """One session a pair, all at time 0, in the format `sessions_jsonl`."""
    lines = [
        json.dumps({"timestamp": 0, "session_id": index, "input": prompt, "output": output})
        for index, (prompt, output) in enumerate(pairs)
    ]
    write_whole(path, "\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the prompts that the command line describes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments byte_prompts", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--text", type=Path, help="the text the models were trained on")
    parser.add_argument("--out", type=Path, default=Path("byte_models/prompts.jsonl"))
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    text = options.text.read_text("utf-8") if options.text else shipped_text()
    try:
        pairs = text_prompts(text, options.count, options.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_trace(pairs, options.out)
    print(f"{len(pairs)} prompts -> {options.out}")
    return 0

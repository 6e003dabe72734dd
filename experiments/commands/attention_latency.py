"""Latency of the paged attention kernel beside the contiguous one on this machine: `python -m
experiments attention_latency [--rounds 60] [--results-dir results]`.

OPT-13B's heads, batches of 8 and 32 sequences of 64, 128 and 256 tokens, as in the PagedAttention
paper's Fig. 18 (a). What is stored in RESULTS_DIR/attention_latency is drawn and put into the
table by `python -m harness experiment=paper`. Exit status: 0, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import attention_latency
from harness.config import ConfigError

_EXAMPLES = """\
examples:
  python -m experiments attention_latency                  # about a minute
  python -m experiments attention_latency --rounds 200     # narrower intervals
"""


_LEAST_ROUNDS = 20


def main(arguments: Sequence[str]) -> int:
    """Measure, print a line a shape, store."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments attention_latency",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    if given.rounds < _LEAST_ROUNDS:
        raise ConfigError(f"--rounds {given.rounds}: must be at least {_LEAST_ROUNDS}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here; take cpu or auto")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if given.device == "auto" else given.device
    console = Console(soft_wrap=True, markup=False)
    environment = attention_latency.environment(device)
    measured = attention_latency.measure(device, given.rounds)
    path = attention_latency.store(measured, given.results_dir, environment)
    console.print(f"{environment.device}, {environment.cpu}, {environment.threads} threads")
    medians = measured.groupby(["batch", "context", "kernel"])["latency_us"].median()
    for (batch, context), overhead in attention_latency.overheads(measured).items():
        contiguous = medians[batch, context, "contiguous"]
        paged = medians[batch, context, "paged"]
        console.print(
            f"{batch:3d} sequences of {context:3d} tokens: contiguous {contiguous:8.0f} us, "
            f"pages of {attention_latency.PAGE_SIZE} {paged:8.0f} us: "
            f"{overhead.mean:+.1f} ±{overhead.half_width:.1f} %",
            highlight=False,
        )
    console.print(f"stored: {path}", highlight=False)
    return 0

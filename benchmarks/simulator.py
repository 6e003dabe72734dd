"""Wall time, memory and speed of simulated runs, each in a process of its own:
`python -m benchmarks.simulator`.

The PagedAttention paper's one-hour ShareGPT trace at 2 requests/s on OPT-13B (section 6.1), the
same with ten times the pool, and with ten times as many requests at the same rate; `--case
million` is a run of a million. Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

HOUR = (
    "executor=simulated", "executor.cost=roofline", "executor.gpu=a100_40gb", "model=opt_13b",
    "engine=paper", "workload=sharegpt", "workload.arrivals=poisson", "workload.rate=2",
    "kv.page_size=16", "allocator=paged", "tracking=none",
)  # fmt: skip


class Case(NamedTuple):
    """A run: its pool in pages of 16 and its number of requests."""

    name: str
    num_pages: int
    num_requests: int


CASES = {
    "hour": Case("one hour at 2 requests/s", 983, 7_200),
    "pool": Case("ten times the pool", 9_830, 7_200),
    "requests": Case("ten times the requests", 983, 72_000),
    "million": Case("a million requests", 983, 1_000_000),
}


class Measured(NamedTuple):
    """cpu_s: of all processes. tokens: prompt and output."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    tokens: int
    batched_requests: float


def measure(case: Case, extra: Sequence[str]) -> Measured:
    """Do the run in a new process, pinned to one core where that can be done."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "harness", *HOUR, f"kv.pool_tokens={case.num_pages * 16}",
            f"workload.num_requests={case.num_requests}", f"results_dir={folder}", *extra,
        ]  # fmt: skip
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_pin)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begin
        if status:
            raise SystemExit(f"{case.name}: the run failed, see above")
        (path,) = Path(folder).rglob("summary.csv")
        row = pd.read_csv(path).iloc[0]
    return Measured(
        wall_s,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        int(row["prompt_tokens"] + row["output_tokens"]),
        float(row["batched_requests"]),
    )


def _pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="may be repeated")
    parser.add_argument("overrides", nargs="*", help="key=value, as for python -m harness")
    given = parser.parse_args()
    console = Console()
    rows = []
    for name in given.case or ("hour", "pool", "requests"):
        case = CASES[name]
        found = measure(case, given.overrides)
        rows.append(
            {
                "run": case.name,
                "requests": f"{case.num_requests:,}",
                "tokens": f"{found.tokens:,}",
                "wall s": f"{found.wall_s:.1f}",
                "CPU s": f"{found.cpu_s:.1f}",
                "peak GiB": f"{found.peak_bytes / 2**30:.2f}",
                "tokens/CPU s": f"{found.tokens / found.cpu_s:,.0f}",
                "batched requests": f"{found.batched_requests:.1f}",
            }
        )
        console.print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1))


if __name__ == "__main__":
    main()

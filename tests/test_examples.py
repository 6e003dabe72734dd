"""The allocator that the documentation shows does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from allocators.base import KVCacheAllocator
from allocators.contract import verify
from allocators.discovery import load
from allocators.page_pool import PagePool

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "mine.py"


def test_the_example_is_short_and_fills_in_no_more_than_it_must():
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 35
    own = {name for name, value in vars(load(f"{EXAMPLE}:Mine")).items() if callable(value)}
    assert own - {"__init__"} == KVCacheAllocator.__abstractmethods__


def test_the_example_keeps_the_contract():
    verdict = verify(load(f"{EXAMPLE}:Mine"), num_steps=120, num_seeds=10)
    assert verdict.failure is None, verdict.failure
    assert verdict.num_operations > 1000


def test_the_example_takes_pages_ahead():
    allocator = load(f"{EXAMPLE}:Mine")(PagePool(8, 4))
    allocator.allocate(0, range(4), max_len=20, expected_len=0)
    assert len(allocator.block_table(0)) == 1
    allocator.append(0)
    assert len(allocator.block_table(0)) == 3


def test_the_example_runs_beside_the_built_in_strategies(tmp_path):
    arguments = ("executor=simulated", "model=tiny", "kv.page_size=16", "workload.num_requests=12")
    process = subprocess.run(
        [sys.executable, "-m", "harness", *arguments, f"allocator=paged,{EXAMPLE}:Mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    rows = pd.read_csv(tmp_path / "results" / "single" / "summary.csv").set_index("allocator")
    assert set(rows["status"]) == {"complete"}
    assert rows.num_finished.tolist() == [12, 12]
    mine, paged = rows.loc[f"{EXAMPLE}:Mine"], rows.loc["paged"]
    assert mine.token_of_mapped < paged.token_of_mapped  # what pages ahead of need cost

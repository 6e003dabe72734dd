"""The Triton kernels compile for GPUs that are not there, and no register spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from kernels.aot import compile_variant, variants

dtype, capability = getattr(torch, sys.argv[1]), int(sys.argv[2])
found = []
for options in (
    dict(head_dim=64, page_size=1),
    dict(head_dim=64, page_size=16),
    dict(head_dim=128, page_size=1),
    dict(head_dim=128, page_size=16),
    dict(head_dim=128, page_size=16, has_table=False),
    dict(head_dim=64, page_size=16, group=1, softcap=True),
    dict(head_dim=128, page_size=16, group=7),
):
    for variant in variants(dtype=dtype, **options):
        found.append([options, compile_variant(variant, dtype, capability)._asdict()])
print(json.dumps(found))
"""


def compile_all(dtype: str, capability: int, cache: Path) -> list[tuple[dict, dict]]:
    """In a process of its own: the interpreter is chosen once, when triton is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, dtype, str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", [80, 90])
def test_no_spills_in_bfloat16(capability: int, tmp_path: Path) -> None:
    resources = compile_all("bfloat16", capability, tmp_path)
    assert len(resources) == 7 * 6
    spilled = [(options, found) for options, found in resources if found["stack_bytes"] > 0]
    assert not spilled
    assert all(found["registers"] > 0 for _, found in resources)

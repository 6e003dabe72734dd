"""Edited code gets a new address, other code keeps its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import harness.runs.code_hash as module
from harness.runs.code_hash import (
    allocator_files,
    allocator_hash,
    code_hash,
    data_hash,
    own_files,
)

ROOT = Path(__file__).parents[2]


def names(files: set[Path]) -> set[str]:
    return {file.name for file in files}


def test_a_strategy_is_its_file_and_what_that_builds_on():
    paged = names(allocator_files("paged"))
    prefix = names(allocator_files("paged_prefix"))
    assert {"paged.py", "base.py", "page_pool.py"} <= paged
    assert paged | {"paged_cow.py", "paged_prefix.py", "prefix_index.py"} <= prefix
    assert not {"contiguous.py", "extents.py", "paged_prefix.py"} & paged
    assert {"contiguous.py", "extents.py"} <= names(allocator_files("contiguous"))
    assert all(ROOT in file.parents for file in allocator_files("paged_prefix"))


def test_an_own_file_is_followed_to_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("helper.py").write_text("import json, math\nSIZE = 1\n")
    Path("unrelated.py").write_text("")
    Path("mine.py").write_text(
        "import numpy as np\nfrom helper import SIZE\nfrom allocators.paged_cow import "
        "PagedCopyOnWrite\nclass Mine(PagedCopyOnWrite):\n    name = 'mine'\n"
    )
    files = allocator_files("./mine.py:Mine")
    assert {"mine.py", "helper.py", "paged_cow.py", "paged.py", "base.py"} <= names(files)
    assert not {"unrelated.py", "paged_prefix.py", "json.py"} & names(files)
    assert all(tmp_path in f.parents or ROOT / "allocators" in f.parents for f in files)
    before, others = allocator_hash("./mine.py:Mine"), allocator_hash("paged_cow")
    Path("helper.py").write_text("import json, math\nSIZE = 2\n")
    assert allocator_hash("./mine.py:Mine") != before
    assert allocator_hash("paged_cow") == others


def test_a_router_of_ones_own_is_its_file_and_neighbours_wherever_it_lies(tmp_path):
    (tmp_path / "harness" / "cluster").mkdir(parents=True)  # as in a checkout
    (tmp_path / "harness" / "cluster" / "router.py").write_text("")
    (tmp_path / "helper.py").write_text("")
    router = tmp_path / "mine.py"
    router.write_text("import helper\nfrom harness.cluster.router import Router\n")
    assert names(own_files(f"{router}:Mine")) == {"mine.py", "helper.py"}


@pytest.fixture
def copied_tree(tmp_path, monkeypatch):
    """The packages copied aside, where `code_hash` then looks for them."""
    import shutil

    for package in ("harness", "kernels"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )

    def find(name: str):
        path = tmp_path.joinpath(*name.split("."))
        if path.is_dir():
            return importlib.util.spec_from_file_location(
                name, path / "__init__.py", submodule_search_locations=[str(path)]
            )
        return importlib.util.spec_from_file_location(name, path.with_suffix(".py"))

    monkeypatch.setattr(module, "find_spec", find)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "simulated_changes", "timed_changes"),
    [
        ("harness/config.py", True, True),
        ("harness/engine/scheduling/scheduler.py", True, True),
        ("harness/measure/ledger.py", True, True),
        ("harness/workloads/lengths.py", True, True),
        ("harness/workloads/data/sharegpt_quantiles.csv", True, True),
        ("harness/workloads/traces/azure.py", True, True),
        ("harness/runs/build.py", True, True),
        ("harness/runs/one_run.py", True, True),
        ("harness/runs/pool_size.py", True, True),
        ("harness/runs/torch_device.py", False, True),
        ("kernels/reference.py", False, True),
        ("harness/runs/display.py", False, False),
        ("harness/runs/study.py", False, False),
        ("harness/tracking/wandb_tracker.py", False, False),
        ("harness/__main__.py", False, False),
    ],
)
def test_what_decides_numbers_is_hashed_and_the_display_is_not(
    copied_tree, file, simulated_changes, timed_changes
):
    before = code_hash("paged", False), code_hash("paged", True)
    path = copied_tree / file
    assert path.is_file()
    path.write_bytes(path.read_bytes() + b"\n# edited\n")
    after = code_hash("paged", False), code_hash("paged", True)
    assert (after[0] != before[0], after[1] != before[1]) == (simulated_changes, timed_changes)


def test_a_hash_does_not_depend_on_where_the_code_lies(copied_tree):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_spec", importlib.util.find_spec)
        installed = code_hash("paged", True)
    assert code_hash("paged", True) == installed


def test_an_edited_trace_is_another_workload(tmp_path):
    assert data_hash(None) == ""
    trace = tmp_path / "trace.csv"
    trace.write_text("1,2\n")
    before = data_hash(str(trace)), data_hash(str(tmp_path))
    trace.write_text("1,3\n")
    assert data_hash(str(trace)) != before[0]
    assert data_hash(str(tmp_path)) != before[1]

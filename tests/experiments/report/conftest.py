"""Studies to report on, each run once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stored_study import COMPARED, MAPPED, TIMED, store


@pytest.fixture(scope="session")
def compared_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with one study: four strategies at two page sizes, six seeds."""
    folder = tmp_path_factory.mktemp("compared")
    store(folder, *COMPARED)
    return folder


@pytest.fixture(scope="session")
def timed_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies whose times mean something."""
    folder = tmp_path_factory.mktemp("timed")
    store(folder, *TIMED, "allocator=contiguous,paged", "allocator.expected=max")
    return folder


@pytest.fixture(scope="session")
def mapped_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies with a map of the pool."""
    folder = tmp_path_factory.mktemp("mapped")
    store(folder, *MAPPED)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a results folder that a test may change."""

    def copy(results: Path) -> Path:
        return Path(shutil.copytree(results, tmp_path / "results"))

    return copy

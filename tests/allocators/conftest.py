"""Paths of the example allocators, which tests load as a user's own files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def allocator_files() -> Path:
    """The folder that holds broken.py and minimal.py."""
    return Path(__file__).parent

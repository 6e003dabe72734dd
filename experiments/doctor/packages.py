"""Installed packages beside what the project requires."""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from experiments.doctor.checks import Check

_GROUP = "packages"
_PROJECT = "kvarena"
_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

_OPTIONAL_AT_IMPORT = frozenset({"wandb", "triton"})
"""The main experiment runs on a CPU without them."""

EXTRAS = {
    "flash-attn": "a bar in kernel benchmarks: pip install flash-attn (needs nvcc)",
    "flashinfer-python": "a bar in kernel benchmarks: pip install flashinfer-python",
    "vllm": "a bar in engine benchmarks: pip install vllm, into a Python of its own",
    "wandb-workspaces": "dashboards in Weights & Biases: pip install wandb-workspaces",
}


def package_checks() -> Iterator[Check]:
    """Python, then each requirement that holds on this system, then extras."""
    python, requirements = requirements_of_project()
    version = platform.python_version()
    if version in SpecifierSet(python):
        yield Check(_GROUP, "python", "ok", f"{version} ({sys.executable})", is_needed=True)
    else:
        way_out = f"install a Python {python}"
        yield Check(_GROUP, "python", "failed", version, way_out, is_needed=True)
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            yield check_requirement(requirement)
    for name, use in EXTRAS.items():
        installed = _version(name)
        if installed is None:
            yield Check(_GROUP, name, "note", "absent", use)
        else:
            yield Check(_GROUP, name, "ok", installed)


def requirements_of_project() -> tuple[str, list[Requirement]]:
    """Of Python, and of the packages that are always needed: of this checkout, else as
    installed."""
    if _PYPROJECT.is_file():
        project = tomllib.loads(_PYPROJECT.read_text())["project"]
        return project["requires-python"], [Requirement(r) for r in project["dependencies"]]
    python = metadata.metadata(_PROJECT)["Requires-Python"]
    found = [Requirement(text) for text in metadata.requires(_PROJECT) or ()]
    return python, [r for r in found if r.marker is None or "extra" not in str(r.marker)]


def check_requirement(requirement: Requirement) -> Check:
    """One package: there, and of a version that was asked for."""
    installed = _version(requirement.name)
    is_needed = requirement.name not in _OPTIONAL_AT_IMPORT
    way_out = f"pip install '{requirement}'"
    if installed is None:
        return Check(_GROUP, requirement.name, "absent", "absent", way_out, is_needed)
    wanted = str(requirement.specifier)
    if requirement.specifier.contains(installed, prereleases=True):
        return Check(_GROUP, requirement.name, "ok", f"{installed} ({wanted})", "", is_needed)
    found = f"{installed}, not {wanted}"
    return Check(_GROUP, requirement.name, "failed", found, way_out, is_needed)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

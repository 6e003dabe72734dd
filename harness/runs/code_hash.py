"""A hash of the code that decides a run's numbers, so that edited code never gets old ones."""

from __future__ import annotations

import ast
import hashlib
import inspect
from importlib.util import find_spec
from pathlib import Path

from allocators import discovery

_RUN_PACKAGES = ("harness.engine", "harness.measure", "harness.workloads")


def code_hash(allocator_name: str, runs_model: bool) -> str:
    """Digest of the engine, measurement, workloads, the strategy's own files and all the files
    of its package that these import; the kernels too where a model runs.
    """
    files = {file for package in _RUN_PACKAGES for file in _package_files(package)}
    if runs_model:
        files |= _package_files("kernels")
    files |= allocator_files(allocator_name)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def allocator_files(name: str) -> set[Path]:
    """Source files that a strategy is made of."""
    cls = discovery.load(name)
    found: set[Path] = set()
    pending = [Path(inspect.getfile(base)) for base in cls.__mro__ if base.__module__ != "builtins"]
    pending = [file for file in pending if "python3" not in str(file.parent.name)]
    while pending:
        file = pending.pop().resolve()
        if file in found:
            continue
        found.add(file)
        pending.extend(_imported_allocator_files(file))
    return found


def _imported_allocator_files(file: Path) -> list[Path]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules.extend(alias.name for alias in node.names)
    specs = [find_spec(module) for module in modules if module.startswith("allocators.")]
    return [Path(spec.origin) for spec in specs if spec is not None and spec.origin]


def _package_files(package: str) -> set[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    return set(Path(spec.origin).parent.rglob("*.py"))

"""A hash of the code and data that decide a run's numbers: edited code never gets old ones."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import allocators
from allocators import discovery
from harness.config import RunConfig
from harness.own_code import file_of, is_file

_RUN_CODE = (
    "harness.cluster",
    "harness.config",
    "harness.conversion",
    "harness.engine",
    "harness.facts",
    "harness.measure",
    "harness.numbers",
    "harness.own_code",
    "harness.workloads",
    "harness.runs.build",
    "harness.runs.fleet",
    "harness.runs.gpu_memory",
    "harness.runs.one_engine",
    "harness.runs.one_run",
    "harness.runs.own_options",
    "harness.runs.pool_size",
    "harness.runs.step_cost",
    "harness.runs.surroundings",
)
_MODEL_CODE = ("kernels", "harness.runs.torch_device")


class CodeHashes:
    """Digests as of when each was first asked for: one of these serves one plan."""

    def __init__(self) -> None:
        self.code = functools.cache(code_hash)
        self.allocator = functools.cache(allocator_hash)
        self.own = functools.cache(own_hash)
        self.data = functools.cache(data_hash)


def code_hash(allocator_name: str, runs_model: bool) -> str:
    """Digest of configuration, engine, measurement, workloads and the strategy's own code; the
    kernels too where a model runs. What is shown of a run takes no part.
    """
    files: set[Path] = set()
    for name in _RUN_CODE + (_MODEL_CODE if runs_model else ()):
        files |= _files_of(name)
    return _digest(files | allocator_files(allocator_name))


def allocator_hash(allocator_name: str) -> str:
    """Digest of the strategy's own code."""
    return _digest(allocator_files(allocator_name))


OWN_CODE: Mapping[str, str] = {
    "allocator": "allocator.name",
    "router": "cluster.router",
    "generator": "workload.generator",
    "reader": "workload.format",
}
"""Keys that may name code of one's own, and the folder of a run that has that code."""


def own_specs(config: RunConfig) -> dict[str, str]:
    """FILE.py:NAME of all code of one's own that a run executes, by its folder."""
    specs = {folder: attrgetter(key)(config) for folder, key in OWN_CODE.items()}
    return {folder: spec for folder, spec in specs.items() if spec and is_file(spec)}


def own_hash(spec: str) -> str:
    """Digest of the code of FILE.py:NAME."""
    return _digest(own_files(spec))


def allocator_files(name: str) -> set[Path]:
    """Source files that a strategy is made of: the one that defines its class, and all that it
    imports, step by step, of the allocators' package or from beside a user's own file.
    """
    return _with_imports(_allocator_file(name))


def own_files(spec: str) -> set[Path]:
    """Source files that FILE.py:NAME is made of, likewise."""
    return _with_imports(file_of(spec).resolve())


def own_sources(specs: Mapping[str, str]) -> dict[str, bytes]:
    """The code of `own_specs` by `allocator/FILE`, `router/FILE`, ...: the named file, and what it
    imports from beside it, as they lie there. Nothing of what comes with kvarena."""
    named = {folder: file_of(spec).resolve() for folder, spec in specs.items()}
    return {
        f"{folder}/{name}": file.read_bytes()
        for folder, first in named.items()
        if _package() not in first.parents
        for name, file in _own_files(first)
    }


def _allocator_file(name: str) -> Path:
    own = file_of(name) if is_file(name) else Path(inspect.getfile(discovery.load(name)))
    return own.resolve()


def _own_files(first: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(_with_imports(first)):
        if _package() not in file.parents:
            yield str(file.relative_to(first.parent)), file


def _package() -> Path:
    """The allocators that come with kvarena."""
    return Path(inspect.getfile(allocators)).resolve().parent


def _with_imports(first: Path) -> set[Path]:
    package = _package()
    pending = [first]
    files: set[Path] = set()
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            pending.extend(_imported_files(file, package, first.parent))
    return files


def data_hash(path: str | None) -> str:
    """Digest of the file or folder that a workload replays, empty where it replays none."""
    if path is None:
        return ""
    root = Path(path).expanduser()
    files = root.rglob("*") if root.is_dir() else [root]
    return _digest(file for file in files if file.is_file())


def _imported_files(file: Path, package: Path, beside: Path) -> Iterator[Path]:
    """Files that `file` imports of the allocators' `package` or from the folder `beside`."""
    for name in _imported_names(ast.parse(file.read_bytes())):
        parts = name.split(".")
        if parts[0] == "harness":  # of the code of every run, wherever the file lies
            continue
        root = package.parent if parts[0] == package.name else beside
        for path in (root.joinpath(*parts), root.joinpath(*parts[:-1])):
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if path != root and candidate.is_file():
                    yield candidate


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names in import statements: modules, or things in modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _files_of(name: str) -> set[Path]:
    """Source and data files of a package, or the file of a module."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    if spec.submodule_search_locations is None:
        return {Path(spec.origin)}
    files = Path(spec.origin).parent.rglob("*")
    return {file for file in files if file.suffix in (".py", ".csv")}


def _digest(files: Iterable[Path]) -> str:
    """By name and contents, wherever they lie."""
    contents = sorted((file.name, _digest_of(file)) for file in files)
    digest = hashlib.sha256()
    for name, content in contents:
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:  # a trace may be larger than memory
        return hashlib.file_digest(file, "sha256").digest()

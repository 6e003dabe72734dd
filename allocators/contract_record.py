"""Which code has passed the contract test: kept by contents, in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import allocators
from allocators.base import KVCacheAllocator


def record_pass(cls: type[KVCacheAllocator]) -> None:
    """Note that a class of a user's own file keeps the contract, with the files that this process
    has loaded for it. Nothing is noted of what comes with kvarena."""
    source = Path(sys.modules[cls.__module__].__file__ or "").resolve()
    if source.parent == _package():
        return
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    own = [Path(each) for each in files if each and not each.startswith(_OTHERS)]
    own = [path for path in own if path.suffix == ".py" and path.is_file()]
    record = _read(source)
    if record.get("allocators") != _digest_of_package():
        record = {"classes": []}
    record["allocators"] = _digest_of_package()
    record["classes"] = sorted({*record["classes"], cls.__name__})
    record["files"] = sorted(map(_digest, own))
    path = _record_of(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def has_passed(source: Path, class_name: str) -> bool:
    """Whether the code in the folder of `source`, the file that defines the class and all that it
    imports from beside it, was noted, by this version of the contract test. class_name: empty where
    the file has only one."""
    if not source.is_file():
        return False
    record = _read(source)
    if record.get("allocators") != _digest_of_package():
        return False
    used = {_digest(path) for path in source.parent.rglob("*.py")}
    return used <= {*record["files"]} and class_name in ("", *record["classes"])


_OTHERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
"""Folders of code that is no user's."""


def _read(source: Path) -> dict[str, Any]:
    try:
        record = json.loads(_record_of(source).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record_of(source: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kvarena" / "contract" / f"{_digest(source)}.json"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _digest_of_package() -> str:
    files = sorted(_package().glob("*.py"))
    return hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest()


def _package() -> Path:
    return Path(allocators.__file__).resolve().parent

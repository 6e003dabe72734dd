"""Finds allocators: those of this package by name, anybody's by `path/to/file.py:Class`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args, get_origin, get_type_hints

import allocators
from allocators.base import KVCacheAllocator
from allocators.page_pool import PagePool


def available() -> dict[str, type[KVCacheAllocator]]:
    """Every concrete allocator of this package by its `name`, in alphabetical order."""
    found: dict[str, type[KVCacheAllocator]] = {}
    for info in pkgutil.iter_modules(allocators.__path__):
        module = importlib.import_module(f"allocators.{info.name}")
        for cls in _defined_in(module):
            if cls.name in found:
                raise ValueError(f"allocator name {cls.name!r}: {cls} and {found[cls.name]}")
            found[cls.name] = cls
    return dict(sorted(found.items()))


def load(spec: str) -> type[KVCacheAllocator]:
    """The allocator called `spec`, or the class that `path/to/file.py:Class` names (`:Class` may
    be left out where the file defines a single allocator). A relative path counts from the
    current directory. ValueError with the nearest names otherwise."""
    path, colon, class_name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, class_name = spec, ""
    if path.endswith(".py"):
        return _load_file(Path(path).expanduser(), class_name)
    known = available()
    if spec not in known:
        raise ValueError(f"unknown allocator {spec!r}{nearest(spec, known)}; or ./file.py:Class")
    return known[spec]


def options(cls: type[KVCacheAllocator]) -> dict[str, inspect.Parameter]:
    """Keyword options of the allocator's constructor, beyond the pool."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in parameters if p.kind in named}


def option_choices(cls: type[KVCacheAllocator]) -> dict[str, tuple[object, ...]]:
    """Allowed values of those options whose type is a Literal."""
    hints = get_type_hints(cls.__init__)
    return {
        option: get_args(hints[option])
        for option in options(cls)
        if get_origin(hints.get(option)) is Literal
    }


def build(spec: str | type[KVCacheAllocator], pool: PagePool, **given: object) -> KVCacheAllocator:
    """Construct an allocator over `pool`. ValueError for an option or a value that it does not
    take, with those that it does."""
    cls = load(spec) if isinstance(spec, str) else spec
    known = options(cls)
    for option in given:
        if option not in known:
            raise ValueError(f"{cls.name} has no option {option!r}{nearest(option, known)}")
    for option, choices in option_choices(cls).items():
        if option in given and given[option] not in choices:
            hint = nearest(str(given[option]), map(str, choices))
            raise ValueError(f"{cls.name}.{option}={given[option]!r} is not a choice{hint}")
    return cls(pool, **given)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The tail of an error message: the names nearest to a wrong one, and all there are."""
    names = list(known)
    if not names:
        return " (there are none)"
    close = difflib.get_close_matches(wrong, names, n=2)
    question = f": did you mean {' or '.join(close)}?" if close else ":"
    return f"{question} There {'is' if len(names) == 1 else 'are'} {', '.join(names)}"


def _defined_in(module: ModuleType) -> list[type[KVCacheAllocator]]:
    """Concrete allocators that the module itself defines and names."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, KVCacheAllocator)
        and not inspect.isabstract(cls)
        and cls.__module__ == module.__name__
        and hasattr(cls, "name")
    ]


def _load_file(path: Path, class_name: str) -> type[KVCacheAllocator]:
    found = {cls.__name__: cls for cls in _defined_in(import_file(path, "allocator"))}
    if not class_name and len(found) == 1:
        (class_name,) = found
    if class_name not in found:
        wanted = f"no allocator {class_name!r}" if class_name else "more than one allocator or none"
        raise ValueError(
            f"{path} defines {wanted}{nearest(class_name, found)} "
            "(an allocator is a subclass of allocators.base.KVCacheAllocator with its abstract "
            "methods filled in)"
        )
    cls = found[class_name]
    if not hasattr(cls, "name"):
        cls.name = class_name
    return cls


def import_file(path: Path, what: str) -> ModuleType:
    """Import a user's file under a name made from its path, once per process and contents. what:
    it is to define. ValueError where there is no such file; whatever its code raises passes."""
    if not path.is_file():
        raise ValueError(f"no {what} file {path} (current directory: {Path.cwd()})")
    path = path.resolve()
    key = blake2b(str(path).encode() + path.read_bytes(), digest_size=8).hexdigest()
    module_name = f"_{what}_file_{key}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module

"""Finds routers: those of `harness.cluster.routers` by name, anybody's by `FILE.py:CLASS`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import harness.cluster.routers as package
from allocators.discovery import import_file, nearest
from harness.cluster.router import Replicas, Router
from harness.own_code import file_of, is_file


def available() -> dict[str, type[Router]]:
    """The routers that come with kvarena, by name."""
    found: dict[str, type[Router]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found |= {cls.name: cls for cls in _defined_in(module) if hasattr(cls, "name")}
    return dict(sorted(found.items()))


def load(spec: str) -> type[Router]:
    """The router called `spec`, or the class that FILE.py:CLASS names (`:CLASS` may be left out
    where the file defines a single router). ValueError with the nearest names otherwise."""
    if not is_file(spec):
        known = available()
        if spec not in known:
            raise ValueError(f"unknown router {spec!r}{nearest(spec, known)}; or ./file.py:Class")
        return known[spec]
    path = file_of(spec)
    found = {cls.__name__: cls for cls in _defined_in(_import_file(path))}
    wanted = spec.rpartition(".py")[2].removeprefix(":")
    if not wanted and len(found) == 1:
        (wanted,) = found
    if wanted not in found:
        what = f"no router {wanted!r}" if wanted else "more than one router or none"
        raise ValueError(
            f"{path} defines {what}{nearest(wanted, found)} (a router is a subclass of "
            "harness.cluster.router.Router with `route`)"
        )
    return found[wanted]


def options(cls: type[Router]) -> Mapping[str, inspect.Parameter]:
    """Parameters of the router's constructor, beyond the replicas."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name: each for each in parameters if each.kind in named}


def build(cls: type[Router], replicas: Replicas, given: Mapping[str, object]) -> Router:
    """A router with options. ValueError for one that it does not take, with those that it does."""
    known = options(cls)
    for option in given:
        if option not in known:
            raise ValueError(f"it has no option {option!r}{nearest(option, known)}")
    return cls(replicas, **given)


def _defined_in(module: ModuleType) -> list[type[Router]]:
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Router)
        and not inspect.isabstract(cls)
        and cls.__module__ == module.__name__
    ]


def _import_file(path: Path) -> ModuleType:
    try:
        return import_file(path, "router")
    except ValueError:
        raise
    except Exception as error:  # it is the user's code: whatever it raises at import ends it here
        raise ValueError(
            f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error

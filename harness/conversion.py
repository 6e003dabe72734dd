"""Plain values as typed configuration, and back: what is wrong with one is said in a line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from harness.config import ConfigError
from harness.numbers import LARGEST_INT, check_finite, shown

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build dataclass `cls` from nested plain mappings.

    Raises ConfigError for an unknown key (with the nearest names) or a value of a wrong type.
    """
    hints = _type_hints(typing.cast(type, cls))
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise ConfigError(unknown_name(f"{prefix}{unknown[0]}", [prefix + h for h in hints], "key"))
    arguments = {key: convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


@functools.cache  # evaluates annotations, of a dozen classes a configuration
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def to_mapping(config: object) -> dict[str, Any]:
    """The settings of `config` as nested plain dicts; the facts of its code are none."""
    return dataclasses.asdict(config, dict_factory=_settings)  # type: ignore[call-overload, no-any-return]


def to_stored(config: object) -> dict[str, Any]:
    """The inverse of `from_mapping`: nested plain dicts, with the facts that show it again."""
    return dataclasses.asdict(config, dict_factory=_known)  # type: ignore[call-overload, no-any-return]


def _settings(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in fields if key != "facts"}


def _known(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in fields if key != "facts" or value is not None}


def unknown_name(name: str, known: typing.Iterable[str], what: str) -> str:
    """A one-line message with the nearest known names, and all of them where they are few."""
    names = sorted(known)
    if not names:
        return f"unknown {what} {name!r}: there is none"
    are_shown = len(names) < _MANY_NAMES
    # a distant name is a hint among many; beside all of them it would only mislead (gpu, cpu)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7 if are_shown else 0.5)
    short = _squashed(name)
    longer = [each for each in names if len(short) > _SHORT_NAME and short in _squashed(each)]
    longer.sort(key=lambda each: not _squashed(each).startswith(short))
    near = list(dict.fromkeys([*longer, *close]))[:3]
    more = "" if are_shown else f", ... ({len(names)} in all)"
    shown = f"choose one of {', '.join(names[:_MANY_NAMES])}{more}"
    if near:
        question = f"did you mean {' or '.join(near)}?"
        shown = f"{question} Or {shown}" if len(near) < len(names) < _MANY_NAMES / 2 else question
    return f"unknown {what} {name!r}: {shown}"


def _squashed(name: str) -> str:
    """As people remember it: without case and separators."""
    return "".join(filter(str.isalnum, name.lower()))


_MANY_NAMES = 20
_SHORT_NAME = 2


_SCALARS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}

_CONTAINERS: Mapping[type, str] = {
    Mapping: "a group of keys",
    dict: "a group of keys",
    Sequence: "a list",
}


def convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as type `hint` where that loses nothing. Raises ConfigError, naming `key`."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            keys = ", ".join(f"{key}.{name}" for name in _type_hints(typing.cast(type, hint)))
            raise ConfigError(f"{key}={value!r}: is a group of keys, give one of {keys}")
        return from_mapping(typing.cast(type, hint), value, f"{key}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{key}: " + unknown_name(str(value), map(str, choices), "value"))
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return convert(hint, value, key)
    if hint in (int, float, str, bool):
        return _convert_scalar(hint, value, key)
    if hint in (Any, object):
        try:
            check_finite(value, key)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    wanted = origin or hint
    if isinstance(wanted, type) and hint is not Any and not isinstance(value, wanted):
        raise ConfigError(f"{key}={value!r}: expected {_CONTAINERS.get(wanted, wanted.__name__)}")
    inner = typing.get_args(hint)
    if isinstance(value, Mapping) and inner:
        return {name: convert(inner[1], each, f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str) and inner:
        return [convert(inner[0], each, f"{key}[{index}]") for index, each in enumerate(value)]
    return value


def _convert_scalar(kind: type, value: Any, key: str) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and not math.isfinite(value):  # neither counts nor goes into JSON
        raise ConfigError(f"{key}={value}: expected {_SCALARS[kind]} that is finite")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ConfigError(f"{key}={shown(value)}: must be at most 2**62, counts are of 64 bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    swept = ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        swept = f"; to sweep several: {key}={','.join(map(str, value))}"
    raise ConfigError(f"{key}={value!r}: expected {_SCALARS[kind]}{swept}")

"""The words of a command line, read one by one: a word that cannot be read is quoted as typed."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.schema import admit_files


def read_overrides(arguments: Sequence[str]) -> list[Override]:
    """What Hydra makes of `arguments`, an allocator's file put as a choice of its group. Raises
    ConfigError with the first that is no setting, and how one is written."""
    parser = OverridesParser.create()
    return [_read(parser, argument) for argument in arguments]


def _read(parser: OverridesParser, argument: str) -> Override:
    try:
        override = parser.parse_override(admit_files(argument))
    except HydraException as error:
        raise ConfigError(f"cannot read {argument!r}: {_how_to_write(argument)}") from error
    if not override.key_or_group:
        raise ConfigError(f"cannot read {argument!r}: {_how_to_write(argument)}")
    return override


def _how_to_write(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals:
        return (
            "a run is described by KEY=VALUE, with no spaces around `=` or `,` (--help lists the "
            "keys); commands about finished runs are python -m experiments NAME"
        )
    if not re.fullmatch(r"[+~]*[A-Za-z_][^\s:]*", key):
        return "there is no key before the `=`; write KEY=VALUE, with no spaces around the `=`"
    if "" in map(str.strip, value.split(",")):
        return "a comma stands between two values, with no spaces: KEY=A,B"
    return f"brackets, quotes and the like must pair up, or be quoted: '{key}=\"VALUE\"'"


class Flags(NamedTuple):
    """asks_help: --help is among them. words: the flags as typed, with what belongs to them.
    settings: all else."""

    asks_help: bool
    words: tuple[str, ...]
    settings: tuple[str, ...]


def read_flags(arguments: Sequence[str]) -> Flags:
    """The flags among `arguments`. Raises ConfigError for one that there is not."""
    is_setting = [re.match(r"[\w+~][^ ]*=|~", argument) is not None for argument in arguments]
    settings = list(itertools.compress(arguments, is_setting))
    others = list(itertools.compress(arguments, [not is_one for is_one in is_setting]))
    parser = _parser()
    found, unread = parser.parse_known_args(others)
    for word in unread:
        if word.startswith("-"):
            hint = unknown_name(word, parser.names, "flag")
            raise ConfigError(f"{hint}. Settings are KEY=VALUE, without dashes")
    words = [word for word in others if word not in unread]
    return Flags(found.help, tuple(words), (*settings, *unread))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as a ConfigError."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self._option_string_actions if name.startswith("--"))

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser() -> _Parser:
    """Flags of ours, and those of Hydra's that show a configuration."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    kinds = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=kinds)
    return parser

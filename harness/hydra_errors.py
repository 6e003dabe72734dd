"""Hydra's many-line errors as one line, with the nearest names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.conversion import unknown_name

_OWN_CHOICES: Mapping[str, str] = {
    "allocator": "One of your own is allocator=./FILE.py:CLASS",
    "model": "A checkpoint is model=hub model.path=DIR_OR_ID",
}
"""Of groups whose choices are not all: how the others are given."""

_OPEN_GROUPS = ("model.config.", "workload.options.")
"""That take more keys than a preset sets: a model's of its configuration, a generator's own."""


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with `overrides`, which Hydra answered with `error`. Within
    `harness.compose.hydra_session`."""
    text = str(error)
    for pattern in (r"Could not override '([^']+)'", r"Could not delete .*?'([^']+)' does not"):
        if found := re.search(pattern, text):
            return _unknown_key(found.group(1), overrides)
    if found := re.search(r"Could not (?:find|load) '(\w+(?:/\w+)*?)/([^']*)'", text):
        return _unknown_choice(*found.groups())
    if "Config group override" in text:
        for override in overrides:
            group, _, choice = override.lstrip("+").partition("=")
            if _choices(group) and choice not in _choices(group):
                return _unknown_choice(group, choice)
    return _first_line(error)


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """`key` as Hydra has it; the one within it where it is given several in braces."""
    known = _known_keys(overrides)
    for override in map(OverridesParser.create().parse_override, overrides):
        if override.key_or_group != key or override.is_delete():
            continue
        value = override.value()
        within = _inner_keys(value, f"{key}.") if isinstance(value, Mapping) else []
        key = next((each for each in within if each not in known), key)
    if key in known:
        return f"{key} is deleted by another of these settings: {' '.join(overrides)}"
    message = unknown_name(key, known, "key")
    return f"{message} To add it: +{key}=VALUE" if key.startswith(_OPEN_GROUPS) else message


def _inner_keys(values: Mapping[Any, Any], prefix: str) -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _inner_keys(value, f"{prefix}{key}.")
    return keys


def _choices(group: str) -> Sequence[str]:
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def _unknown_choice(group: str, choice: str) -> str:
    message = f"{group}: {unknown_name(choice, _choices(group), 'value')}"
    if group not in _OWN_CHOICES:
        return message
    return f"{message}{'' if message.endswith('?') else '.'} {_OWN_CHOICES[group]}"


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """Every dotted key that the config has, its groups' choices being what they are."""
    groups = [o for o in overrides if "." not in o.split("=", 1)[0] and o[0] not in "+~"]
    for chosen in (groups, []):
        try:
            config = OmegaConf.to_container(compose("config", overrides=chosen))
        except (HydraException, OmegaConfBaseException):
            continue
        assert isinstance(config, dict)
        return _inner_keys(config, "")
    return []


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))

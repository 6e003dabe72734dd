"""Hydra's many-line errors as one line, with the nearest names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.conversion import unknown_name

_OWN_CHOICES: Mapping[str, str] = {
    "allocator": "One of your own is allocator=./FILE.py:CLASS",
    "model": "A checkpoint is model=hub model.path=DIR_OR_ID",
}
"""Of groups whose choices are not all: how the others are given."""


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with `overrides`, which Hydra answered with `error`. Within
    `harness.compose.hydra_session`."""
    text = str(error)
    for pattern in (r"Could not override '([^']+)'", r"Could not delete .*?'([^']+)' does not"):
        if found := re.search(pattern, text):
            return unknown_name(found.group(1), _known_keys(overrides), "key")
    if found := re.search(r"Could not find '([^']+)'", text):
        for override in overrides:
            group, _, choice = override.lstrip("+").partition("=")
            if f"{group}/{choice}" == found.group(1):
                return _unknown_choice(group, choice)
    return _first_line(error)


def _unknown_choice(group: str, choice: str) -> str:
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    message = f"{group}: {unknown_name(choice, known, 'value')}"
    if group not in _OWN_CHOICES:
        return message
    return f"{message}{'' if message.endswith('?') else '.'} {_OWN_CHOICES[group]}"


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """Every dotted key that the config has, its groups' choices being what they are."""
    groups = [o for o in overrides if "." not in o.split("=", 1)[0] and o[0] not in "+~"]
    keys: list[str] = []

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            keys.append(prefix + str(key))
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    for chosen in (groups, []):
        try:
            config = OmegaConf.to_container(compose("config", overrides=chosen))
        except (HydraException, OmegaConfBaseException):
            continue
        assert isinstance(config, dict)
        walk({str(key): value for key, value in config.items()}, "")
        break
    return keys


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))

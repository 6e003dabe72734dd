"""Whether W&B can be asked for anything from here."""

from __future__ import annotations

import netrc
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import wandb

_CONNECT_TIMEOUT_S = 10.0


def is_logged_in() -> bool:
    """A key is there: in WANDB_API_KEY, or left in the netrc file by `wandb login`. Nobody is asked
    whether it is any good."""
    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    host = urlsplit(settings.base_url).hostname
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / name for name in (".netrc", "_netrc")]:
        try:
            if host is not None and netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def why_unreachable() -> str:
    """Why nobody answers at W&B's address, which W&B itself would try for many minutes; an empty
    text where somebody does, or where a proxy is between."""
    url = wandb.setup().settings.base_url
    parts = urlsplit(url)
    if parts.hostname is None or getproxies().get(parts.scheme):
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{url} cannot be reached ({error})"
    return ""

"""Whether a checkpoint on the hub can be had, found out before transformers tries for a minute."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache


def check_reachable(path: str) -> None:
    """Raise ValueError for a checkpoint that is neither a folder nor cached, where it is no
    OWNER/NAME, or the hub's address cannot be looked up (a proxy looks it up itself)."""
    if Path(path).is_dir() or isinstance(
        try_to_load_from_cache(path, "config.json"), str | os.PathLike
    ):
        return
    if "/" not in path:
        raise ValueError("no such folder, and no hub id: give a checkpoint's DIR, or OWNER/NAME")
    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ValueError(
            f"no such folder, it is not in the cache, and {host} cannot be reached ({error}): give "
            "a checkpoint's DIR"
        ) from None

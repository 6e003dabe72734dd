"""Where ranks meet."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """Where rank 0 keeps the store that the ranks of one group meet at."""

    host: str
    port: int

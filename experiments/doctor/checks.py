"""What a check of the machine finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Status = Literal["ok", "absent", "failed", "note"]
"""absent: not there, and something cannot be done without it. failed: there, and does not work.
note: a fact, neither good nor bad."""


class Check(NamedTuple):
    """found: what there is. way_out: what to do about it, where it is not ok. is_needed: the main
    experiment (sweep_page_size) does not run without it."""

    group: str
    name: str
    status: Status
    found: str
    way_out: str = ""
    is_needed: bool = False

    @property
    def stops_all(self) -> bool:
        """The main experiment cannot run because of this."""
        return self.is_needed and self.status in ("absent", "failed")


def can_run(checks: Sequence[Check]) -> bool:
    """Whether nothing that is needed is missing."""
    return not any(check.stops_all for check in checks)

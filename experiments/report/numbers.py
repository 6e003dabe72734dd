"""Numbers as readers see them."""

from __future__ import annotations

import math

SIGNIFICANT_DIGITS = 3


def compact(value: float) -> str:
    """Three significant digits with thousands separated: `0.0123`, `71.5`, `1,270`."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    digits = SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.{max(0, digits)}f}"


def percent(share: float) -> str:
    """A share as percent with one digit: `71.5 %`."""
    return "-" if not math.isfinite(share) else f"{100 * share:.1f} %"

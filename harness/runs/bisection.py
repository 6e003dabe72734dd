"""The highest value of a key that is sustained, by bisection: which to try next.

Nothing here runs anything: probes go in, the next value comes out, so an interrupted search goes
on from whichever probes are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_EXTENSIONS = 3
EXTENSION = 4.0
"""An end of the range that lies on the wrong side is moved by this factor, so many times."""

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Search:
    """key: what is searched, a number above 0 that more of makes harder (`workload.rate`).

    low, high: where the answer is expected, to begin with. tolerance: the lowest value that is not
    sustained is to be at most 1 + tolerance times the highest that is. normalised_latency_ms:
    bound of `is_sustained`.
    """

    key: str
    low: float
    high: float
    tolerance: float
    normalised_latency_ms: float

    @property
    def most_probes(self) -> int:
        """Probes until the end where the range holds the answer, both ends tried too."""
        halvings = math.log(self.high / self.low) / math.log(1 + self.tolerance)
        return max(0, math.ceil(math.log2(max(1.0, halvings)))) + 2


class Probe(NamedTuple):
    """A value that was tried."""

    value: float
    sustained: bool


class Bracket(NamedTuple):
    """sustained: the highest value that was, 0 if none. unsustained: the lowest that was not and
    that nothing sustained lies above, infinity if none."""

    sustained: float
    unsustained: float


def bracket(probes: Sequence[Probe]) -> Bracket:
    """Where the answer lies by `probes`. Where noise has them contradict each other (sustained
    above one that is not), the lower answer holds."""
    unsustained = min((p.value for p in probes if not p.sustained), default=math.inf)
    sustained = max((p.value for p in probes if p.sustained and p.value < unsustained), default=0.0)
    return Bracket(sustained, unsustained)


def next_value(search: Search, probes: Sequence[Probe]) -> float | None:
    """The value to try next, or None when the answer is within the tolerance, or outside of all
    that is tried.

    It halves the range between what is known, or assumed of its ends, in the logarithm. An end
    that the search closes in on is tried itself, and moved where it is on the wrong side.
    """
    known = bracket(probes)
    tried = {probe.value for probe in probes}
    low, high = known
    for extension in range(MAX_EXTENSIONS + 1):
        if low == 0.0 and (end := _rounded(search.low / EXTENSION**extension)) < high:
            low = end
        if high == math.inf and (end := _rounded(search.high * EXTENSION**extension)) > low:
            high = end
    if low == 0.0 or high == math.inf:
        return None
    if high <= low * (1 + search.tolerance):
        return next((end for end in (low, high) if end not in tried), None)
    middle = _rounded(math.sqrt(low * high))
    return middle if low < middle < high else None


def _rounded(value: float) -> float:
    """A value that a person can read, and that is the same however it was reached."""
    return float(f"{value:.{_DIGITS}g}")

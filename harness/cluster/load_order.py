"""Replicas in the order of their loads, kept up in constant time a change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class LoadOrder:
    """Replicas by their number of outstanding requests; among equals the one first that has had
    that number for the longest time, at the start the lowest.

    An idle fleet is thus used in turn, and no number is preferred. Loads change by one, so the
    least one moves by one at most: nothing is searched.
    """

    def __init__(self, count: int) -> None:
        self._loads = [0] * count
        self._since = list(range(count))
        self._num_changes = count
        self._at_load: dict[int, OrderedDict[int, None]] = {0: OrderedDict.fromkeys(range(count))}
        self.least = 0
        """The smallest number of requests that any has."""

    def __iter__(self) -> Iterator[int]:
        """From the least loaded on; not to be changed meanwhile."""
        for load in sorted(self._at_load):
            yield from self._at_load[load]

    @property
    def first(self) -> int:
        """The least loaded."""
        return next(iter(self._at_load[self.least]))

    def load(self, replica: int) -> int:
        """Its outstanding requests."""
        return self._loads[replica]

    def rank(self, replica: int) -> tuple[int, int]:
        """Replicas are in the order of these."""
        return self._loads[replica], self._since[replica]

    def sent(self, replica: int) -> None:
        """It has a request more."""
        self._move(replica, 1)
        if self.least not in self._at_load:
            self.least += 1

    def ended(self, replica: int) -> None:
        """It has a request less."""
        self._move(replica, -1)
        self.least = min(self.least, self._loads[replica])

    def _move(self, replica: int, change: int) -> None:
        load = self._loads[replica]
        equals = self._at_load[load]
        del equals[replica]
        if not equals:
            del self._at_load[load]
        self._loads[replica] = load = load + change
        self._at_load.setdefault(load, OrderedDict())[replica] = None
        self._since[replica] = self._num_changes
        self._num_changes += 1

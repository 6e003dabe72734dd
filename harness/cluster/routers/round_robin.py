"""Each request to the next replica."""

from __future__ import annotations

from typing import ClassVar

from harness.cluster.router import Replicas, RoutedRequest, Router


class RoundRobin(Router):
    """Replica 0 gets the first request, 1 the second, and so on around. It looks at nothing."""

    name: ClassVar[str] = "round_robin"

    def __init__(self, replicas: Replicas) -> None:
        super().__init__(replicas)
        self._next = 0

    def route(self, request: RoutedRequest, now_s: float) -> int:
        replica, self._next = self._next, (self._next + 1) % self.replicas.count
        return replica

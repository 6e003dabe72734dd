"""Each request to the replica that has the fewest."""

from __future__ import annotations

from typing import ClassVar

from harness.cluster.load_order import LoadOrder
from harness.cluster.router import Replicas, RoutedRequest, Router


class LeastLoaded(Router):
    """The replica with the fewest requests that were sent to it and have not ended (what SGLang's
    router calls shortest queue, and AIBrix least request); among equals the one that has had so
    few for the longest time. Constant time a request."""

    name: ClassVar[str] = "least_loaded"

    def __init__(self, replicas: Replicas) -> None:
        super().__init__(replicas)
        self._order = LoadOrder(replicas.count)

    def route(self, request: RoutedRequest, now_s: float) -> int:
        replica = self._order.first
        self._order.sent(replica)
        return replica

    def ended(self, request: RoutedRequest, replica: int) -> None:
        self._order.ended(replica)

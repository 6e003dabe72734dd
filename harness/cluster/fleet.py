"""Replicas that serve one stream of requests: whole engines, advanced in the order of events."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.cluster.router import Replicas, RoutedRequest, Router
from harness.engine.arrivals import Arrival, ArrivalSource
from harness.engine.engine import Engine
from harness.engine.request import Request
from harness.engine.scheduling.scheduler import Scheduler


class Replica(NamedTuple):
    """One of the fleet, fresh: an engine on a virtual clock of its own, and its scheduler."""

    engine: Engine
    scheduler: Scheduler


class Inbox:
    """What a replica's engine sees of the arrivals: those that were routed to it."""

    def __init__(self, source: ArrivalSource, note_end: Callable[[Request, float], None]) -> None:
        self._source = source
        self.note_end = note_end
        self.arrived: list[Arrival] = []

    def next_arrival_s(self) -> float:
        """When the next request is due, anywhere."""
        return self._source.next_arrival_s()

    def take_arrived(self, now_s: float) -> list[Arrival]:
        """Requests that were routed here and not taken yet."""
        arrived, self.arrived = self.arrived, []
        return arrived

    def awaits_end(self, request: Request) -> bool:
        """Another request comes, here or elsewhere, when `request` has ended."""
        return self._source.awaits_end(request)


class Fleet:
    """Serves `source` by `replicas`, each request by the one that a router chooses as it arrives.

    All are on one virtual time. At each time of an event, in this order: steps that end then end,
    by the replica's number; requests that are due are routed, one by one, and taken in by the
    replicas that no step keeps busy; these begin their next steps. What a request's end releases
    (a chat's next turn, a closed loop's next request) is routed like any other. A fleet of one
    does what `Engine.run` does. Time is O(log replicas) an event, beside the router's.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        source: ArrivalSource,
        make_router: Callable[[Replicas], Router],
        page_size: int,
        pool_tokens: int,
    ) -> None:
        self._replicas = replicas
        self._source = source
        self._inboxes = [self._inbox(index) for index in range(len(replicas))]
        self._loads = Replicas(
            len(replicas), page_size, pool_tokens, self._num_running, self._num_waiting
        )
        self._router = make_router(self._loads)
        self._ends: list[tuple[float, int]] = []
        self._is_busy = [False] * len(replicas)

    def run(self) -> None:
        """Serve every request that can be served."""
        ends, source = self._ends, self._source
        while True:
            now_s = min(ends[0][0] if ends else math.inf, source.next_arrival_s())
            if math.isinf(now_s):
                break
            ready = self._end_steps(now_s)
            self._let_in(now_s, ready)
            for index in sorted(ready) if len(ready) > 1 else ready:
                end_s = self._replicas[index].engine.start_step(self._inboxes[index])
                if end_s < math.inf:
                    self._is_busy[index] = True
                    heapq.heappush(ends, (end_s, index))
        for replica in self._replicas:
            replica.engine.check_done()

    def _end_steps(self, now_s: float) -> set[int]:
        """End the steps whose time has come; returns the replicas, which are free now."""
        ends, ready = self._ends, set()
        while ends and ends[0][0] <= now_s:
            _, index = heapq.heappop(ends)
            self._is_busy[index] = False
            self._replicas[index].engine.end_step(self._inboxes[index])
            ready.add(index)
        return ready

    def _let_in(self, now_s: float, ready: set[int]) -> None:
        """Route what is due, and let the replicas that are free take it in; those that were idle
        become `ready`. Who is refused at once may release another that is due."""
        is_first = True
        while is_first or self._source.next_arrival_s() <= now_s:
            is_first = False
            for arrival in self._source.take_arrived(now_s):
                index = self._route(arrival, now_s)
                if not self._is_busy[index]:
                    ready.add(index)
            for index in sorted(ready):
                self._replicas[index].engine.admit(self._inboxes[index], now_s)

    def _route(self, arrival: Arrival, now_s: float) -> int:
        request = RoutedRequest.of(arrival.request)
        index = self._router.route(request, now_s)
        loads = self._loads
        if not 0 <= index < loads.count:
            raise ValueError(
                f"router {type(self._router).__name__} sent request {request.request_id} to "
                f"replica {index}: there are 0 to {loads.count - 1}"
            )
        loads.num_requests[index] += 1
        loads.num_tokens[index] += request.max_held_tokens
        self._inboxes[index].arrived.append(arrival)
        return index

    def _inbox(self, index: int) -> Inbox:
        def note_end(request: Request, now_s: float) -> None:
            routed, loads = RoutedRequest.of(request), self._loads
            loads.num_requests[index] -= 1
            loads.num_tokens[index] -= routed.max_held_tokens
            self._router.ended(routed, index)
            self._source.note_end(request, now_s)

        return Inbox(self._source, note_end)

    def _num_running(self, index: int) -> int:
        return len(self._replicas[index].scheduler.running)

    def _num_waiting(self, index: int) -> int:
        replica = self._replicas[index]
        running = len(replica.scheduler.running)
        return replica.scheduler.num_unfinished - running + len(self._inboxes[index].arrived)

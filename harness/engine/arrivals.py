"""When requests reach the engine: by the clock, after another request, or in a closed loop."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from typing import NamedTuple, Protocol

from harness.engine.request import Request, Workload


class Arrival(NamedTuple):
    """A request reaches the engine. scheduled_s: the arrival from which latencies are measured."""

    request: Request
    scheduled_s: float


class ArrivalSource(Protocol):
    """Lets requests into the engine."""

    def next_arrival_s(self) -> float:
        """When the next request is due; infinity when none is scheduled."""
        ...

    def take_arrived(self, now_s: float) -> list[Arrival]:
        """Requests due by `now_s` that were not taken yet."""
        ...

    def note_end(self, request: Request, now_s: float) -> None:
        """`request` was answered or refused: whoever waited for that comes next."""
        ...

    def awaits_end(self, request: Request) -> bool:
        """Another request comes when `request` has ended."""
        ...


class RequestSource:
    """Releases a workload's requests as time passes and requests end.

    The scheduled arrival is `arrival_s` in an open loop, the predecessor's end plus think time
    in a session, and the release itself in a closed loop. There a user who thinks counts as one
    in the system. A request is taken out of the workload as it arrives, not before. ValueError
    for a workload that would leave requests unreleased for ever.
    """

    def __init__(self, workload: Workload) -> None:
        if workload.closed_loop is not None and workload.closed_loop < 1:
            raise ValueError(
                f"a closed loop of {workload.closed_loop} requests releases none: "
                "workload.concurrency must be at least 1"
            )
        self._requests = workload.requests
        self._due: list[tuple[float, int]] = []
        self._followers: dict[int, list[tuple[float, int]]] = defaultdict(list)
        self._closed_loop = workload.closed_loop is not None
        self._backlog: deque[int] = deque()
        for index, outline in enumerate(workload.outlines()):
            if outline.after_request is not None:
                _check_order(index, outline.after_request)
                self._followers[outline.after_request].append((outline.arrival_s, index))
            elif self._closed_loop:
                self._backlog.append(index)
            else:
                self._due.append((outline.arrival_s, index))
        heapq.heapify(self._due)
        for _ in range(min(workload.closed_loop or 0, len(self._backlog))):
            self._release_next(0.0)

    def next_arrival_s(self) -> float:
        """When the next request is due; infinity when none is scheduled."""
        return self._due[0][0] if self._due else math.inf

    def take_arrived(self, now_s: float) -> list[Arrival]:
        """Requests due by `now_s`."""
        arrived = []
        while self._due and self._due[0][0] <= now_s:
            scheduled_s, index = heapq.heappop(self._due)
            arrived.append(Arrival(self._take(index), scheduled_s))
        return arrived

    def note_end(self, request: Request, now_s: float) -> None:
        """`request` was answered or refused: whoever waited for that comes next."""
        followers = self._followers.pop(request.request_id, [])
        for think_s, index in followers:
            heapq.heappush(self._due, (now_s + think_s, index))
        if self._closed_loop and not followers and self._backlog:
            self._release_next(now_s)

    def awaits_end(self, request: Request) -> bool:
        """Another request comes when `request` has ended."""
        return bool(self._backlog) or request.request_id in self._followers

    def _release_next(self, now_s: float) -> None:
        heapq.heappush(self._due, (now_s, self._backlog.popleft()))

    def _take(self, index: int) -> Request:
        request = self._requests[index]
        if request.request_id != index:
            raise ValueError(f"request_id {request.request_id} stands at place {index}")
        return request


def _check_order(index: int, after_request: int) -> None:
    if not 0 <= after_request < index:
        raise ValueError(
            f"request {index} follows request {after_request}, which is not among those before it"
        )

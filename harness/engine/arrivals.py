"""When requests reach the engine: by the clock, after another request, or in a closed loop."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque

from harness.engine.request import Request, Workload


class RequestSource:
    """Releases a workload's requests as time passes and requests end.

    The scheduled arrival, from which latencies are measured, is `arrival_s` in an open loop,
    the predecessor's end plus think time in a session, and the release itself in a closed
    loop. There a user who thinks counts as one in the system. ValueError for a workload that
    would leave requests unreleased for ever.
    """

    def __init__(self, workload: Workload) -> None:
        _check(workload)
        self._due: list[tuple[float, int, Request]] = []
        self._followers: dict[int, list[Request]] = defaultdict(list)
        self._closed_loop = workload.closed_loop is not None
        self._backlog: deque[Request] = deque()
        for request in workload.requests:
            if request.after_request is not None:
                self._followers[request.after_request].append(request)
            elif self._closed_loop:
                self._backlog.append(request)
            else:
                heapq.heappush(self._due, (request.arrival_s, request.request_id, request))
        for _ in range(min(workload.closed_loop or 0, len(self._backlog))):
            self._release_next(0.0)

    def next_arrival_s(self) -> float:
        """When the next request is due; infinity when none is scheduled."""
        return self._due[0][0] if self._due else math.inf

    def take_arrived(self, now_s: float) -> list[tuple[Request, float]]:
        """Requests due by `now_s`, each with its scheduled arrival."""
        arrived = []
        while self._due and self._due[0][0] <= now_s:
            arrival_s, _, request = heapq.heappop(self._due)
            arrived.append((request, arrival_s))
        return arrived

    def note_end(self, request: Request, now_s: float) -> None:
        """`request` was answered or refused: whoever waited for that comes next."""
        followers = self._followers.pop(request.request_id, [])
        for follower in followers:
            heapq.heappush(self._due, (now_s + follower.arrival_s, follower.request_id, follower))
        if self._closed_loop and not followers and self._backlog:
            self._release_next(now_s)

    def _release_next(self, now_s: float) -> None:
        request = self._backlog.popleft()
        heapq.heappush(self._due, (now_s, request.request_id, request))


def _check(workload: Workload) -> None:
    if workload.closed_loop is not None and workload.closed_loop < 1:
        raise ValueError(
            f"a closed loop of {workload.closed_loop} requests releases none: "
            "workload.concurrency must be at least 1"
        )
    known: set[int] = set()
    for request in workload.requests:
        if request.request_id in known:
            raise ValueError(f"request_id {request.request_id} is given twice")
        if request.after_request is not None and request.after_request not in known:
            raise ValueError(
                f"request {request.request_id} follows request {request.after_request}, which is "
                "not among those before it"
            )
        known.add(request.request_id)

"""The contract of a router: which replica gets a request, by what a router can know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from harness.engine.request import Request


class RoutedRequest(NamedTuple):
    """A request as a router sees it: without its output, which nobody knows beforehand.

    request_id: in order of the workload. max_tokens: bound on the output tokens of each of
    `num_sequences` branches. session_id: of a chat or an agent, or -1.
    """

    request_id: int
    prompt_ids: Sequence[int]
    max_tokens: int
    num_sequences: int
    session_id: int

    @classmethod
    def of(cls, request: Request) -> RoutedRequest:
        """What of `request` a router sees."""
        return cls(
            request.request_id,
            request.prompt_ids,
            request.max_tokens,
            request.num_sequences,
            request.session_id,
        )

    @property
    def max_held_tokens(self) -> int:
        """Tokens that it may come to hold: the prompt, and what each branch may add."""
        return len(self.prompt_ids) + self.num_sequences * self.max_tokens


class Replicas:
    """What a router is told of the replicas, which are all alike, as of now.

    count: of them; they are numbered from 0. page_size, pool_tokens: of each one's pool.
    num_requests[i]: requests that were sent to replica i and have not ended; num_tokens[i]: tokens
    that they may come to hold. num_running(i), num_waiting(i): requests that its engine runs, and
    that it has in its queue.
    """

    def __init__(
        self,
        count: int,
        page_size: int,
        pool_tokens: int,
        num_running: Callable[[int], int],
        num_waiting: Callable[[int], int],
    ) -> None:
        self.count = count
        self.page_size = page_size
        self.pool_tokens = pool_tokens
        self.num_requests = [0] * count
        self.num_tokens = [0] * count
        self.num_running = num_running
        self.num_waiting = num_waiting


class Router(ABC):
    """Sends each request to a replica, when it arrives and for good.

    A subclass with a `name` in a module of `harness.cluster.routers` is found by it, any other as
    `cluster.router=FILE.py:CLASS`. Further parameters of its constructor are options: they have
    defaults, and are read from the key `cluster.NAME` where there is one of that name (whose
    default then holds, not the parameter's), from `cluster.options.NAME` otherwise.
    """

    name: ClassVar[str]

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas

    @abstractmethod
    def route(self, request: RoutedRequest, now_s: float) -> int:
        """The replica that gets a request which arrives now: steps that end at this time have
        ended, none that begins now has begun. The counts of `replicas` do not have it yet."""

    def ended(self, request: RoutedRequest, replica: int) -> None:
        """A request that was sent to `replica` was answered or refused. The counts of `replicas`
        are without it."""
        return

"""Each request to where its prompt's beginning was sent before, unless that replica is loaded."""

from __future__ import annotations

from typing import ClassVar

from harness.cluster.load_order import LoadOrder
from harness.cluster.router import Replicas, RoutedRequest, Router
from harness.cluster.sent_prefixes import Holders, SentPrefixes

_FEW = 32
"""Up to so many holders are compared one by one; of more, one of the least loaded is soon met."""


class PrefixAware(Router):
    """SGLang's cache-aware policy (sgl-project/sglang, pull requests 2114 and 2170), over the page
    index of the Gateway API inference extension (`SentPrefixes`).

    cache_threshold: share of the prompt from which on a match counts. index_tokens: tokens of
        prompts that are remembered of each replica; None for as many as its pool has.
    balance_abs_threshold, balance_rel_threshold: a replica is passed over that has more requests
        than the least loaded one by more than the first of these, and by more than the second's
        factor.

    Of the replicas that hold the longest match, the least loaded one gets the request; where it
    is passed over, one with the next shorter match; where nobody is left, the least loaded of all.
    SGLang compares the most loaded replica of all with the least loaded one, and leaves affinity
    for everybody where they are too far apart. Among hundreds of replicas some two always are, so
    here the guard is of the replica that is about to be chosen (as in its pull request 29481); and
    what matches nothing goes to the least loaded replica, not to the one with the smallest tree,
    which could be a busy one (14532).
    """

    name: ClassVar[str] = "prefix_aware"

    def __init__(
        self,
        replicas: Replicas,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
        index_tokens: int | None = None,
    ) -> None:
        super().__init__(replicas)
        self._cache_threshold = cache_threshold
        self._balance_abs = balance_abs_threshold
        self._balance_rel = balance_rel_threshold
        tokens = replicas.pool_tokens if index_tokens is None else index_tokens
        size = replicas.page_size
        self._index = SentPrefixes(replicas.count, size, max(1, tokens // size))
        self._order = LoadOrder(replicas.count)

    def route(self, request: RoutedRequest, now_s: float) -> int:
        digests = self._index.digests(request.prompt_ids)
        replica = self._choose(digests, len(request.prompt_ids))
        self._index.note(replica, digests)
        self._order.sent(replica)
        return replica

    def ended(self, request: RoutedRequest, replica: int) -> None:
        self._order.ended(replica)

    def _choose(self, digests: list[int], prompt_len: int) -> int:
        order = self._order
        most = max(order.least + self._balance_abs, order.least * self._balance_rel)
        for match in self._index.holders(digests):
            if match.num_tokens < self._cache_threshold * prompt_len:
                break
            replica = self._least_loaded(match)
            if order.load(replica) <= most:
                return replica
        return order.first

    def _least_loaded(self, match: Holders) -> int:
        if len(match.replicas) <= _FEW:
            return min(match.replicas, key=self._order.rank)
        return next(replica for replica in self._order if replica in match.replicas)

"""The most that any prefix cache could hit, by a radix tree over the tokens themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.engine.request import Workload

Ids = NDArray[np.integer]


class _Edge:
    """A run of tokens, and the edges that continue it by their first token."""

    __slots__ = ("next", "tokens")

    def __init__(self, tokens: Ids) -> None:
        self.tokens = tokens
        self.next: dict[int, _Edge] = {}


def ideal_prefix_hits(workload: Workload) -> list[int]:
    """Per request, prompt tokens whose KV an earlier request has computed, if nothing is evicted.

    Requests are taken one after the other in order of `request_id`. Request r reuses the
    longest common prefix of its prompt with any earlier prompt + output less the last output
    token (its KV is never written), at most prompt - 1 tokens: one token must be computed to
    have logits. Outputs that are not forced are unknown and count as nothing.
    """
    return radix_hits(
        (_array(request.prompt_ids), _array(request.forced_ids or ()))
        for request in workload.requests
    )


def radix_hits(requests: Iterable[tuple[Ids, Ids]]) -> list[int]:
    """The same of (prompt, forced output) in order; an output that is not forced is empty."""
    root = _Edge(np.empty(0, dtype=np.int64))
    hits = []
    for prompt, output in requests:
        hits.append(min(_match(root, prompt), len(prompt) - 1))
        _insert(root, np.concatenate([prompt, output[:-1]]))
    return hits


def _array(token_ids: Sequence[int]) -> Ids:
    return np.fromiter(token_ids, dtype=np.int32, count=len(token_ids))


def _match(root: _Edge, tokens: Ids) -> int:
    edge, matched = root, 0
    while matched < len(tokens):
        following = edge.next.get(int(tokens[matched]))
        if following is None:
            break
        common = _common(following.tokens, tokens[matched:])
        matched += common
        if common < len(following.tokens):
            break
        edge = following
    return matched


def _insert(root: _Edge, tokens: Ids) -> None:
    edge, done = root, 0
    while done < len(tokens):
        first = int(tokens[done])
        following = edge.next.get(first)
        if following is None:
            edge.next[first] = _Edge(tokens[done:].copy())  # a view would keep what is before it
            return
        common = _common(following.tokens, tokens[done:])
        if common < len(following.tokens):
            rest = _Edge(following.tokens[common:])
            rest.next = following.next
            following.next = {int(rest.tokens[0]): rest}
            following.tokens = following.tokens[:common]
        edge, done = following, done + common


def _common(left: Ids, right: Ids) -> int:
    size = min(len(left), len(right))
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size

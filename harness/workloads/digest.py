"""What a run was asked to serve, as a short text that two runs can be compared by."""

from __future__ import annotations

import hashlib
from array import array

from harness.engine.request import Workload

MOST_TOKENS_OF = 1_000
"""Requests whose tokens are looked at, evenly spaced: a workload may have a million."""


def requests_digest(workload: Workload) -> str:
    """Equal for workloads of the same requests: arrivals, lengths, branches and order of all, and
    the prompts and forced outputs of up to MOST_TOKENS_OF."""
    found = hashlib.blake2b(digest_size=8)
    found.update(repr(workload.closed_loop).encode())
    for outline in workload.outlines():
        found.update(repr(tuple(outline)).encode())
    requests = workload.requests
    for index in range(0, len(requests), -(-len(requests) // MOST_TOKENS_OF) or 1):
        request = requests[index]
        found.update(array("q", request.prompt_ids).tobytes())
        found.update(array("q", request.forced_ids or ()).tobytes())
    return found.hexdigest()

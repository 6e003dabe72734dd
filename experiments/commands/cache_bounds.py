"""Hit rates of the prefix cache's eviction policies beside what no policy can exceed:
`python -m experiments cache_bounds --format mooncake --path FILE --length-scale 0.03125`.

Requests are served one after the other, without an engine, so a policy meets the same accesses
at every capacity. Hits are whole pages (`partial_reuse=false`).
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

from allocators.eviction import Eviction
from allocators.page_pool import PagePool
from allocators.paged_prefix import PagedPrefix
from harness.engine.request import Request, Workload
from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate
from harness.workloads.ideal import ideal_prefix_hits
from harness.workloads.page_bounds import (
    PageAccess,
    belady_page_hits,
    computed_ids,
    infinite_page_hits,
    num_distinct_pages,
    page_accesses,
)

POLICIES: tuple[Eviction, ...] = get_args(Eviction)
_EXAMPLES = """\
examples:
  python -m experiments cache_bounds --format mooncake --path FILE --length-scale 0.03125
  python -m experiments cache_bounds --format sessions_jsonl --path FOLDER --sessions 8
"""

CAPACITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class CapacityRow(NamedTuple):
    """One capacity. Hit rates are cached prompt tokens over all prompt tokens, from 0 to 1.

    share: of the workload's distinct full pages. num_pages: the pool, from that. num_too_long:
    requests that need more than the pool; they hit nothing under any policy. policies: by name.
    belady: the bound at this capacity. infinite: the bound at any, in whole pages.
    """

    share: float
    num_pages: int
    num_too_long: int
    policies: Mapping[Eviction, float]
    belady: float
    infinite: float


def capacity_rows(
    workload: Workload, page_size: int, capacities: Sequence[float]
) -> list[CapacityRow]:
    """A row a capacity, given as shares of the workload's distinct full pages."""
    accesses = page_accesses(workload, page_size)
    num_distinct = num_distinct_pages(accesses)
    num_prompt_tokens = sum(len(request.prompt_ids) for request in workload.requests)

    def rate(page_hits: Sequence[int]) -> float:
        return sum(page_hits) * page_size / num_prompt_tokens

    infinite = rate(infinite_page_hits(accesses))
    rows = []
    for share in capacities:
        num_pages = max(1, round(share * num_distinct))
        policies = {
            policy: rate(policy_page_hits(workload, accesses, page_size, num_pages, policy))
            for policy in POLICIES
        }
        num_too_long = sum(access.num_held > num_pages for access in accesses)
        belady = rate(belady_page_hits(accesses, num_pages))
        rows.append(CapacityRow(share, num_pages, num_too_long, policies, belady, infinite))
    return rows


def policy_page_hits(
    workload: Workload,
    accesses: Sequence[PageAccess],
    page_size: int,
    num_pages: int,
    eviction: Eviction,
) -> list[int]:
    """Per request, pages that `paged_prefix` finds in a pool of `num_pages`: each is allocated,
    decoded, committed and freed before the next. 0 for those that need more than the pool."""
    allocator = PagedPrefix(PagePool(num_pages, page_size), False, eviction=eviction)
    hits = []
    for request, access in zip(workload.requests, accesses, strict=True):
        if access.num_held > num_pages:
            hits.append(0)
            continue
        seq_id, tokens = request.request_id, computed_ids(request)
        outcome = allocator.allocate(seq_id, request.prompt_ids, len(tokens), 0)
        assert outcome is not None, "nothing else is running"
        num_decoded = len(tokens) - len(request.prompt_ids)
        if num_decoded:
            assert allocator.append(seq_id, num_decoded) is not None, "nothing else is running"
        allocator.commit(seq_id, tokens[outcome.num_cached_tokens :])
        allocator.free(seq_id)
        hits.append(outcome.num_cached_tokens // page_size)
    return hits


def take_turns(requests: Sequence[Request], num_sessions: int) -> tuple[Request, ...]:
    """`requests` with the turns of `num_sessions` sessions alternating; where one ends, the next
    begins. A request of no session is a session of its own."""
    sessions: dict[int, deque[Request]] = {}
    for request in requests:
        key = request.session_id if request.session_id >= 0 else -1 - request.request_id
        sessions.setdefault(key, deque()).append(request)
    waiting = deque(sessions.values())
    active = deque(waiting.popleft() for _ in range(min(num_sessions, len(waiting))))
    ordered: list[Request] = []
    while active:
        session = active.popleft()
        ordered.append(session.popleft())
        if session:
            active.append(session)
        elif waiting:
            active.append(waiting.popleft())
    return tuple(ordered)


def to_text(workload: Workload, page_size: int, rows: Sequence[CapacityRow]) -> str:
    """The rows as a table, in percent."""
    num_distinct = num_distinct_pages(page_accesses(workload, page_size))
    num_prompt_tokens = sum(len(request.prompt_ids) for request in workload.requests)
    exact = sum(ideal_prefix_hits(workload)) / num_prompt_tokens
    heads = ["capacity", "pages", *POLICIES, "belady", "infinite", "too long"]
    lines = ["".join(f"{head:>10}" for head in heads)]
    for row in rows:
        rates = [*row.policies.values(), row.belady, row.infinite]
        cells = [f"{row.share:.4g}", f"{row.num_pages:,}", *(f"{100 * r:.2f}" for r in rates)]
        lines.append("".join(f"{cell:>10}" for cell in [*cells, f"{row.num_too_long:,}"]))
    return "\n".join(
        [
            f"{workload.description}; {num_distinct:,} distinct pages of {page_size} tokens",
            "prefix hits in % of prompt tokens, whole pages; capacity: share of distinct pages",
            *lines,
            f"an infinite cache that is exact to the token: {100 * exact:.2f}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a trace; 2 where it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments cache_bounds",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, help="of the trace, as workload.format")
    parser.add_argument("--path", required=True, help="file or folder of the trace")
    parser.add_argument("--capacities", type=_shares, default=CAPACITIES, help="0.01,0.1,...")
    parser.add_argument("--num-requests", type=int, help="replay a stretch (default: all)")
    parser.add_argument("--page-size", type=int, default=16, help="tokens (default: 16)")
    parser.add_argument("--length-scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--max-len", type=int, default=10**9, help="drop longer requests")
    parser.add_argument("--sessions", type=int, default=1, help="that take turns (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        config = WorkloadConfig(
            name="trace",
            generator="trace",
            format=given.format,
            path=given.path,
            num_requests=given.num_requests,
            length_scale=given.length_scale,
            max_len=given.max_len,
            arrivals="trace",
            page_multiple=given.page_size,
        )
        workload = generate(config, seed=given.seed, vocab_size=50_000)
        workload = replace(workload, requests=take_turns(workload.requests, given.sessions))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    rows = capacity_rows(workload, given.page_size, given.capacities)
    print(to_text(workload, given.page_size, rows))
    return 0


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text}: shares of the distinct pages, above 0, up to 1")
    return shares

"""The most that a prefix cache of whole pages could hit: without limit, and at a capacity."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.engine.request import Request, Workload


@dataclass(frozen=True, slots=True)
class PageAccess:
    """What one request does with a cache of whole pages.

    page_ids: its full pages, once all is computed; equal ids for equal tokens from the first
        one on, numbered from 0 in order of appearance.
    num_findable: leading ones that may be found cached: those of the prompt less its last token,
        which must be computed to have logits.
    num_held: pages that it maps at the end of its run, a partly filled last one included.
    """

    page_ids: tuple[int, ...]
    num_findable: int
    num_held: int


def page_accesses(workload: Workload, page_size: int) -> list[PageAccess]:
    """Per request, in order of `request_id`, its pages of prompt + output less the last output
    token (its KV is never written). Outputs that are not forced count as nothing."""
    ids: dict[tuple[int, tuple[int, ...]], int] = {}
    accesses = []
    for request in workload.requests:
        tokens = computed_ids(request)
        page_ids: list[int] = []
        parent = -1
        for start in range(0, len(tokens) - page_size + 1, page_size):
            parent = ids.setdefault((parent, tokens[start : start + page_size]), len(ids))
            page_ids.append(parent)
        num_findable = (len(request.prompt_ids) - 1) // page_size
        accesses.append(PageAccess(tuple(page_ids), num_findable, -(-len(tokens) // page_size)))
    return accesses


def computed_ids(request: Request) -> tuple[int, ...]:
    """Tokens whose KV the request leaves behind."""
    return (*request.prompt_ids, *(request.forced_ids or ())[:-1])


def num_distinct_pages(accesses: Sequence[PageAccess]) -> int:
    """Pages that an unlimited cache holds in the end."""
    return len({page for access in accesses for page in access.page_ids})


def infinite_page_hits(accesses: Sequence[PageAccess]) -> list[int]:
    """Per request, pages that it finds cached if nothing is ever evicted."""
    cached: set[int] = set()
    hits = []
    for access in accesses:
        hits.append(sum(page in cached for page in access.page_ids[: access.num_findable]))
        cached.update(access.page_ids)
    return hits


def belady_page_hits(accesses: Sequence[PageAccess], num_pages: int) -> list[int]:
    """Per request, pages that it finds cached in a pool of `num_pages`, if pages are evicted with
    the future known: the page whose next use is farthest away goes first (Belady, IBM Systems
    Journal 5(2), 1966; MIN).

    The model. Requests run one after the other. While a request runs it holds `num_held` pages;
    the others keep pages of earlier requests. After it, its full pages may be kept as well, or
    any of them dropped at once. A page's next use is the next request that has it; that is a
    hit where it is kept until then and findable there, and worth nothing to keep where it is not
    findable (the request computes it again). A request of more than `num_pages` is never let in:
    it hits nothing and leaves nothing.

    In which sense it is a bound. In this model pages are independent and of unit size, each
    span from a page's use to the next takes one place in between, and for such spans dropping
    whichever ends last, as soon as there are too many, keeps the most (Carlisle and Lloyd,
    Discrete Applied Mathematics 59(3), 1995). So the total is the model's exact optimum, and no
    policy of a cache of whole pages has more in that pool, over requests in this order, one at
    a time; the share of a single request may be larger. A prefix cache is bound further: a page
    is of use only while those before it are kept. That costs nothing where all pages of a
    sequence are findable in the next one that has them: a page is used whenever one behind it
    is, so among spans with the same end the deepest page's can be dropped, and what is kept is
    always a prefix. Where requests end inside what others have in common, the bound may be
    missed by all policies.
    """
    next_use = _next_uses(accesses, num_pages)
    num_kept: Counter[int] = Counter()  # spans by the request that they end with
    farthest: list[int] = []  # those requests, negative, for a heap
    total = 0
    hits = []
    for index, access in enumerate(accesses):
        if access.num_held > num_pages:
            hits.append(0)
            continue
        hits.append(num_kept.pop(index, 0))
        total -= hits[-1]
        while total > num_pages - access.num_held:
            last = -farthest[0]
            if num_kept[last]:
                num_kept[last] -= 1
                total -= 1
            else:
                heapq.heappop(farthest)
        for end, count in next_use[index].items():
            if not num_kept[end]:
                heapq.heappush(farthest, -end)
            num_kept[end] += count
            total += count
    return hits


def _next_uses(accesses: Sequence[PageAccess], num_pages: int) -> list[Counter[int]]:
    """Per request: the later requests that find pages of its own next, with how many."""
    found: list[Counter[int]] = [Counter() for _ in accesses]
    last_user: dict[int, int] = {}
    for index, access in enumerate(accesses):
        if access.num_held > num_pages:
            continue
        for position, page in enumerate(access.page_ids):
            if position < access.num_findable and page in last_user:
                found[last_user[page]][index] += 1
            last_user[page] = index
    return found

"""What of a trace is replayed, in figures by which a wrong unit of its times shows."""

from __future__ import annotations

from collections.abc import Sequence

from harness.workloads.config import WorkloadConfig
from harness.workloads.ideal import radix_hits
from harness.workloads.lazy_requests import LazyRequests
from harness.workloads.trace_scaling import ScaledRow


def times_in_words(config: WorkloadConfig, requests: LazyRequests) -> str:
    """How long requests (of sessions: their first ones) arrive, and how many a second; empty where
    they do not come at the trace's times."""
    if config.arrivals != "trace":
        return ""
    outlines = list(requests.outlines())
    times = [outline.arrival_s for outline in outlines if outline.after_request is None]
    what = "requests" if len(times) == len(outlines) else "sessions"
    if not max(times):
        return f"{len(times):,} {what} at one time"
    return f"arriving over {max(times):,.4g} s, {len(times) / max(times):,.3g} {what}/s on average"


def prefixes_in_words(requests: LazyRequests, rows: Sequence[ScaledRow]) -> str:
    """The most that a prefix cache could hit, if nothing was ever evicted (`ideal_prefix_hits`)."""
    lengths = [outline.num_prompt_tokens for outline in requests.outlines()]
    if rows[0].prompt_ids is not None:
        texts = ((row.prompt_ids, row.output_ids) for row in rows)
        hits = radix_hits((p, o) for p, o in texts if p is not None and o is not None)
    elif rows[0].block_ids:
        hits = _block_hits(rows, lengths)
    else:
        return "shared prefixes not recorded"
    return f"ideal prefix hit rate {sum(hits) / sum(lengths):.1%}"


def _block_hits(rows: Sequence[ScaledRow], lengths: Sequence[int]) -> list[int]:
    """Tokens of each prompt in blocks that an earlier one has, too."""
    filled: dict[int, int] = {}
    hits = []
    for row, length in zip(rows, lengths, strict=True):
        hit = 0
        is_prefix = True
        for index, block in enumerate(row.block_ids):
            own = min(row.block_len, length - index * row.block_len)
            seen = filled.get(block, 0)
            if is_prefix:
                hit += min(own, seen)
                is_prefix = own == min(own, seen)
            filled[block] = max(own, seen)
        hits.append(min(hit, length - 1))
    return hits

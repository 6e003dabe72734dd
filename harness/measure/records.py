"""Raw observations of a run: one record a step, one a request. Metrics come later, from these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import pandas as pd

from harness.measure.ledger import LedgerEntry

Status = Literal["finished", "refused"]


class StepRecord(NamedTuple):
    """One engine step. `refusal` is empty unless the queue's head was refused memory.

    num_draft_tokens: those of num_decode_tokens that were drafts, right or wrong.
    host_us: what the host did from the end of the step before to the end of this one, less the time
    that it waited for the device; device_us: what the device worked on the step (a CPU that runs
    the model waits for itself; NaN where nobody knows). Where a step takes no longer than
    device_us, the host is out of the way.
    broadcast_bytes: what each of the other ranks that the model is split over was sent.
    saved_pages, restored_pages: swapped out to the host and back in. num_running, num_waiting:
    requests. step: counted by each replica of a fleet for itself.
    """

    step: int
    start_s: float
    duration_s: float
    num_prefill_tokens: int
    num_decode_tokens: int
    num_draft_tokens: int
    num_running: int
    num_waiting: int
    num_preempted: int
    copied_pages: int
    saved_pages: int
    restored_pages: int
    allocator_us: float
    host_us: float
    device_us: float
    broadcast_bytes: int
    refusal: str
    replica: int = 0


class RequestRecord(NamedTuple):
    """One request. Times are seconds from the run's start; `arrival_s` is the scheduled one.

    num_output_tokens: of all its sequences; output_len: of the longest, whose tokens the times
    are of. stalled_s: from each preemption to the next new token. num_swaps: preemptions by
    swap. sequence_lens: how `chosen_ids` and `margins` are cut into sequences (samples, or
    beams' outputs, best first, which have no margins). replica: of a fleet, that served it.
    """

    request_id: int
    session_id: int
    status: Status
    reason: str
    arrival_s: float
    first_scheduled_s: float
    first_token_s: float
    finish_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    output_len: int
    num_cached_tokens: int
    num_preemptions: int
    num_swaps: int
    recomputed_tokens: int
    stalled_s: float
    num_drafted_tokens: int
    num_accepted_tokens: int
    waited_for_room: bool
    itl_ms: list[float]
    sequence_lens: list[int]
    chosen_ids: list[int]
    margins: list[float]
    replica: int = 0


def refused_record(
    request_id: int,
    session_id: int,
    num_prompt_tokens: int,
    arrival_s: float,
    reason: str,
    replica: int = 0,
) -> RequestRecord:
    """The row of a request that was never served."""
    return RequestRecord(
        request_id=request_id,
        session_id=session_id,
        status="refused",
        reason=reason,
        arrival_s=arrival_s,
        first_scheduled_s=math.nan,
        first_token_s=math.nan,
        finish_s=math.nan,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=0,
        output_len=0,
        num_cached_tokens=0,
        num_preemptions=0,
        num_swaps=0,
        recomputed_tokens=0,
        stalled_s=0.0,
        num_drafted_tokens=0,
        num_accepted_tokens=0,
        waited_for_room=False,
        itl_ms=[],
        sequence_lens=[],
        chosen_ids=[],
        margins=[],
        replica=replica,
    )


def draft_columns() -> list[str]:
    """Names of the classes of a draft model's pool."""
    return [f"draft_{name}" for name in LedgerEntry._fields]


def steps_frame(
    steps: Iterable[StepRecord],
    entries: Iterable[LedgerEntry],
    draft_entries: Sequence[LedgerEntry] = (),
) -> pd.DataFrame:
    """Step records with the ledger's classes beside them, one row a step; those of a draft
    model's pool follow as draft_token, draft_reserved, ..."""
    left = pd.DataFrame(steps, columns=list(StepRecord._fields))
    right = pd.DataFrame(entries, columns=list(LedgerEntry._fields))
    frames = [left, right]
    if draft_entries:
        frames.append(pd.DataFrame(draft_entries, columns=draft_columns()))
    return pd.concat(frames, axis=1)


def requests_frame(requests: Iterable[RequestRecord]) -> pd.DataFrame:
    """Request records, one row each."""
    return pd.DataFrame(requests, columns=list(RequestRecord._fields))

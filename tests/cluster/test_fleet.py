"""A fleet against single runs: one replica is a single run, and a split workload many of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from fleet_runs import records_of, run_fleet
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import (
    ALLOCATORS,
    RecordingExecutor,
    Setup,
    SimulatedRun,
    branching,
    random_requests,
)

from allocators import discovery
from harness.cluster.router import Replicas, RoutedRequest, Router
from harness.cluster.routers.least_loaded import LeastLoaded
from harness.cluster.routers.prefix_aware import PrefixAware
from harness.cluster.routers.round_robin import RoundRobin
from harness.engine.request import Request
from harness.engine.scheduling.speculation import SpeculationConfig

ROUTERS = (RoundRobin, LeastLoaded, PrefixAware)

MODES: list[dict[str, Any]] = [
    {"schedule": "mixed_chunked"},
    {"schedule": "mixed_unchunked"},
    {"schedule": "prefill_first"},
    {"schedule": "static"},
    {"schedule": "static", "batch_size": 3, "batch_order": "length"},
    {"preemption": "swap", "host_pages": 12},
    {"preemption": "swap", "host_pages": 60, "schedule": "prefill_first"},
    {"windows": (None, 8)},
    {"speculation": SpeculationConfig("injected", num_tokens=3, acceptance=0.6)},
    {"expected": "predicted", "bias": 0.5, "spread": 0.5, "watermark": 0.1},
    {"deferred": True},
]

SETUPS = st.builds(
    lambda mode, slots, page_size, **fields: {
        "num_pages": -(-slots // page_size) * len(mode.get("windows", (None,))),
        "page_size": page_size,
        **fields,
        **mode,
    },
    mode=st.sampled_from(MODES),
    slots=st.integers(60, 250),
    page_size=st.sampled_from([2, 4, 16]),
    token_budget=st.integers(4, 60),
    max_num_seqs=st.sampled_from([4, 100]),
)
REQUESTS = st.builds(
    random_requests,
    st.integers(0, 10**6),
    num_requests=st.integers(0, 14),
    max_output=st.sampled_from([5, 40]),
    shared_len=st.sampled_from([0, 13]),
    chat=st.booleans(),
    spread_s=st.sampled_from([0.0, 30.0]),
)


def on_the_second(requests: list[Request]) -> list[Request]:
    """The same requests, arriving at whole seconds, when steps of a second end."""
    return [replace(each, arrival_s=float(round(each.arrival_s))) for each in requests]


@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
@settings(max_examples=150, deadline=None)
@given(
    setup=SETUPS,
    requests=REQUESTS,
    closed_loop=st.sampled_from([None, 1, 5]),
    router=st.sampled_from(ROUTERS),
    branches=st.booleans(),
    seed=st.sampled_from([None, 1]),
)
def test_a_fleet_of_one_leaves_the_records_of_a_single_run(
    allocator: str,
    options: dict[str, Any],
    setup: dict[str, Any],
    requests: list[Request],
    closed_loop: int | None,
    router: type[Router],
    branches: bool,
    seed: int | None,
) -> None:
    if not discovery.load(allocator).shares_pool:
        setup = {**setup, "windows": (None,)}
    chosen = Setup(allocator, options, **setup)
    if branches and chosen.speculation.method == "none":
        requests = branching(requests, 7)
    if seed is None:
        requests = on_the_second(requests)

    def executor() -> RecordingExecutor | None:
        is_plain = not branches and chosen.speculation.method == "none"
        return RecordingExecutor(seed) if seed is not None and is_plain else None

    alone = SimulatedRun(chosen, executor()).run(requests, closed_loop)
    (fleet,) = run_fleet(chosen, router, 1, requests, closed_loop, lambda _: executor())
    assert records_of(fleet) == records_of(alone)


def split(requests: list[Request], count: int, index: int) -> list[Request]:
    """Every `count`-th request from `index` on, numbered anew."""
    return [replace(each, request_id=i) for i, each in enumerate(requests[index::count])]


@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
@settings(max_examples=25, deadline=None)
@given(
    # predicted lengths and injected drafts are drawn by the request's number
    setup=SETUPS.filter(lambda setup: not {"expected", "speculation"} & setup.keys()),
    seed=st.integers(0, 10**6),
    count=st.integers(2, 5),
    whole_seconds=st.booleans(),
)
def test_round_robin_in_an_open_loop_is_as_many_runs_of_the_split_workload(
    allocator: str,
    options: dict[str, Any],
    setup: dict[str, Any],
    seed: int,
    count: int,
    whole_seconds: bool,
) -> None:
    if not discovery.load(allocator).shares_pool:
        setup = {**setup, "windows": (None,)}
    chosen = Setup(allocator, options, **setup)
    requests = random_requests(seed, num_requests=25, shared_len=9, spread_s=20.0)
    requests = sorted(requests, key=lambda each: each.arrival_s)
    if whole_seconds:
        requests = on_the_second(requests)
    requests = split(requests, 1, 0)
    fleet = run_fleet(chosen, RoundRobin, count, requests)
    for index, run in enumerate(fleet):
        steps, entries, records = records_of(
            SimulatedRun(chosen).run(split(requests, count, index))
        )
        numbered = [each._replace(request_id=index + count * each.request_id) for each in records]
        assert records_of(run) == (steps, entries, numbered)


class Witness(Router):
    """Sends requests anywhere, and writes down what it is told when."""

    def __init__(self, replicas: Replicas, seed: int) -> None:
        super().__init__(replicas)
        self.rng = random.Random(seed)
        self.sent: list[tuple[int, int, float, list[int]]] = []

    def route(self, request: RoutedRequest, now_s: float) -> int:
        replica = self.rng.randrange(self.replicas.count)
        self.sent.append((request.request_id, replica, now_s, list(self.replicas.num_requests)))
        return replica


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 6),
    closed_loop=st.sampled_from([None, 7]),
    durations=st.sampled_from([None, 3]),
)
def test_a_router_is_told_what_is_true_when_a_request_arrives(
    seed: int, count: int, closed_loop: int | None, durations: int | None
) -> None:
    requests = random_requests(seed, num_requests=40, spread_s=30.0, chat=True)
    if durations is None:
        requests = on_the_second(requests)
    seen: list[Witness] = []

    def router(replicas: Replicas) -> Witness:
        seen.append(Witness(replicas, seed))
        return seen[0]

    def executor(replica: int) -> RecordingExecutor | None:
        return None if durations is None else RecordingExecutor(durations + replica)

    setup = Setup("paged_prefix", num_pages=60)
    runs = run_fleet(setup, router, count, requests, closed_loop, executor)
    records = {record.request_id: record for run in runs for record in run.recorder.sink.requests}
    assert len(records) == 40 and all(each.status == "finished" for each in records.values())
    homes = {
        each.request_id: i for i, run in enumerate(runs) for each in run.recorder.sink.requests
    }
    sent = seen[0].sent
    assert [now_s for _, _, now_s, _ in sent] == sorted(now_s for _, _, now_s, _ in sent)
    for place, (request_id, replica, now_s, told) in enumerate(sent):
        assert homes[request_id] == replica
        assert records[request_id].arrival_s == now_s
        before = [each for each in sent[:place] if records[each[0]].finish_s > now_s]
        assert told == [sum(each[1] == i for each in before) for i in range(count)]

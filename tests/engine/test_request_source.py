from __future__ import annotations

import math
from typing import Any

import pytest
from simulated_run import Setup, SimulatedRun, request

from harness.engine.arrivals import RequestSource
from harness.engine.request import Request, Workload


def source(*requests: Request, closed_loop: int | None = None) -> RequestSource:
    return RequestSource(Workload("test", requests, "test", closed_loop))


def ids(arrived: list[tuple[Request, float]]) -> list[tuple[int, float]]:
    return [(asked.request_id, arrival_s) for asked, arrival_s in arrived]


def test_open_loop_releases_by_the_clock_whoever_ends() -> None:
    requests = [request(0, arrival_s=3.0), request(1, arrival_s=1.0), request(2, arrival_s=1.0)]
    arrivals = source(*requests)
    assert arrivals.next_arrival_s() == 1.0
    assert ids(arrivals.take_arrived(0.999)) == []
    assert ids(arrivals.take_arrived(1.0)) == [(1, 1.0), (2, 1.0)]
    arrivals.note_end(requests[1], 2.0)
    assert arrivals.next_arrival_s() == 3.0
    assert ids(arrivals.take_arrived(10.0)) == [(0, 3.0)]
    assert arrivals.next_arrival_s() == math.inf


def test_a_chat_turn_comes_its_think_time_after_the_answer() -> None:
    first, second = request(0, arrival_s=1.0), request(1, arrival_s=5.0, after_request=0)
    arrivals = source(first, second)
    assert ids(arrivals.take_arrived(100.0)) == [(0, 1.0)]
    assert arrivals.next_arrival_s() == math.inf
    arrivals.note_end(first, 7.0)
    assert ids(arrivals.take_arrived(100.0)) == [(1, 12.0)]


def test_closed_loop_keeps_its_number_and_a_thinking_user_counts() -> None:
    requests = [request(0), request(1, arrival_s=9.0), request(2), request(3)]
    requests.append(request(4, arrival_s=2.0, after_request=0))
    arrivals = source(*requests, closed_loop=2)
    assert ids(arrivals.take_arrived(0.0)) == [(0, 0.0), (1, 0.0)]
    arrivals.note_end(requests[0], 4.0)  # its user goes on with 4 and takes no place from 2
    assert ids(arrivals.take_arrived(4.0)) == []
    assert ids(arrivals.take_arrived(6.0)) == [(4, 6.0)]
    arrivals.note_end(requests[1], 7.0)
    assert ids(arrivals.take_arrived(7.0)) == [(2, 7.0)]
    arrivals.note_end(requests[4], 8.0)
    assert ids(arrivals.take_arrived(8.0)) == [(3, 8.0)]


@pytest.mark.parametrize(
    ("requests", "closed_loop", "message"),
    [
        ([request(0)], 0, "closed loop of 0"),
        ([request(0), request(1, after_request=7)], None, "request 1 follows request 7"),
        ([request(0), request(0)], None, "request_id 0 stands at place 1"),
    ],
)
def test_workloads_that_could_not_end_are_errors(
    requests: Any, closed_loop: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        source(*requests, closed_loop=closed_loop).take_arrived(math.inf)


def run(requests: list[Request], closed_loop: int | None = None, **setup: Any) -> SimulatedRun:
    return SimulatedRun(Setup(**setup)).run(requests, closed_loop)


def test_latency_counts_from_the_scheduled_arrival_within_a_step() -> None:
    # steps take 1 s: the second request comes half way through the second step
    finished = run([request(0, 4, 4), request(1, 4, 2, arrival_s=1.5)])
    record = finished.records[1]
    assert (record.arrival_s, record.first_scheduled_s) == (1.5, 2.0)
    assert (record.first_token_s, record.finish_s) == (3.0, 4.0)
    assert record.itl_ms == [1000.0]


def test_engine_sleeps_until_the_next_arrival() -> None:
    finished = run([request(0, 4, 1, arrival_s=10.0), request(1, 4, 1, arrival_s=20.0)])
    assert [step.start_s for step in finished.recorder.sink.steps] == [10.0, 20.0]


def test_closed_loop_arrivals_are_the_releases() -> None:
    finished = run([request(i, 4, 2, arrival_s=99.0) for i in range(4)], closed_loop=2)
    assert [finished.records[i].arrival_s for i in range(4)] == [0.0, 0.0, 2.0, 2.0]
    assert max(step.num_running for step in finished.recorder.sink.steps) == 2


def test_a_refused_request_lets_its_successor_and_the_loop_go_on() -> None:
    requests = [request(0, 500, 1), request(1, 4, 1, after_request=0, arrival_s=2.0), request(2)]
    finished = run(requests, closed_loop=1)
    assert [finished.records[i].status for i in range(3)] == ["refused", "finished", "finished"]
    assert finished.records[1].arrival_s == 2.0


def test_a_preempted_sequence_keeps_its_gap_between_tokens() -> None:
    finished = run([request(i, 12, 5) for i in range(3)], num_pages=10)
    record = finished.records[2]
    assert record.num_preemptions == 1
    assert sum(record.itl_ms) == pytest.approx(1e3 * (record.finish_s - record.first_token_s))
    assert max(record.itl_ms) > 1000.0

"""Of jobs that several want, each is taken once; what others do is waited for, or left to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import RunConfig
from harness.measure.environment import Environment
from harness.runs.claims import Claims
from harness.runs.job_queue import JobQueue, is_done_since, stamps_of
from harness.runs.jobs import Job
from harness.runs.worker import save_failure

ENVIRONMENT = Environment("cpu", "a CPU", 2, 0.5, 8.0, 1, "3.11", "linux", "default", {}, "none")


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [Job(RunConfig(), name, name, "", tmp_path, "") for name in ("one", "two", "three")]


@pytest.fixture
def ours():
    with Claims() as claims:
        yield claims


@pytest.fixture
def theirs():
    with Claims() as claims:
        yield claims


def fail(job: Job) -> None:
    save_failure(job, "died", 1.0, ENVIRONMENT)


def take_all(queue: JobQueue) -> list[str]:
    taken = []
    while queue.next is not None:
        if (job := queue.take()) is not None:
            taken.append(job.run_id)
    return taken


def test_what_another_has_is_passed_over_and_its_row_taken(jobs, ours, theirs):
    assert theirs.take(jobs[1].root, "two")
    queue = JobQueue(ours)
    queue.add(jobs)
    assert take_all(queue) == ["one", "three"]
    assert queue.is_waiting
    assert queue.look() == []
    fail(jobs[1])  # a failure of another command that runs now is an answer, too
    assert queue.look() == []  # still claimed: it may be written again
    theirs.release(jobs[1].root, "two")
    assert [job.run_id for job in queue.look()] == ["two"]
    assert not queue.is_waiting
    assert queue.next is None


def test_what_another_gives_up_is_done_here(jobs, ours, theirs):
    theirs.take(jobs[1].root, "two")
    queue = JobQueue(ours)
    queue.add(jobs)
    take_all(queue)
    theirs.release(jobs[1].root, "two")
    assert queue.look() == []
    assert take_all(queue) == ["two"]


def test_what_was_done_before_its_turn_is_not_done_again(jobs, ours, theirs):
    queue = JobQueue(ours)
    queue.add(jobs)
    fail(jobs[2])
    assert take_all(queue) == ["one", "two"]
    assert [job.run_id for job in queue.look()] == ["three"]
    assert theirs.take(jobs[2].root, "three")  # not kept claimed


def test_a_failure_of_an_earlier_command_is_tried_again(jobs, ours):
    fail(jobs[0])
    queue = JobQueue(ours)
    queue.add(jobs)
    assert take_all(queue) == ["one", "two", "three"]
    stamps = stamps_of(jobs)
    fail(jobs[0])
    assert [is_done_since(job, stamps) for job in jobs] == [True, False, False]


def test_a_queue_that_does_not_wait_leaves_others_what_they_have(jobs, ours, theirs):
    theirs.take(jobs[1].root, "two")
    queue = JobQueue(ours, waits=False)
    queue.add(jobs)
    assert take_all(queue) == ["one", "three"]
    assert not queue.is_waiting

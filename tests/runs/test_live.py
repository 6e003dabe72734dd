"""What a run under way tells of itself, against what its ledger says of it afterwards."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from harness.compose import Composer, hydra_session
from harness.measure.record_files import KeptRecords
from harness.runs import live
from harness.runs.build import WatchedRun, prepare
from harness.runs.live import LiveBoard, LiveRun
from harness.runs.one_run import make_workload, simulated_device

WORDS = (
    "model=tiny", "executor=simulated", "workload.num_requests=30",
    "workload.length_scale=0.05", "workload.max_len=256", "kv.page_size=4",
)  # fmt: skip
NUM_PAGES = 24


@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_what_is_seen_of_a_run_is_what_its_ledger_says(allocator: str) -> None:
    with hydra_session():
        config = Composer().run([*WORDS, f"allocator={allocator}"])
    device = simulated_device(config)
    sink = KeptRecords()
    workload = make_workload(config, device)
    run = prepare(config, workload, NUM_PAGES, device, sink)
    watched = WatchedRun(run, NUM_PAGES, config.kv.page_size)
    recorder: Any = run.recorder
    seen: list[float] = []
    decided = recorder.decided

    def looks(*arguments: Any) -> None:
        decided(*arguments)
        seen.append(watched.used_share())

    recorder.decided = looks
    run.run()
    slots = NUM_PAGES * config.kv.page_size
    assert seen == pytest.approx([entry.token / slots for entry in sink.entries])
    assert max(seen) > 0.3
    assert watched.num_ended() == len(workload.requests) == len(sink.requests)
    assert watched.num_output_tokens() == sum(each.num_output_tokens for each in sink.requests)


class _Watched:
    """Is a quarter done, and now and then cannot be looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.seen_often = threading.Event()

    def num_ended(self) -> int:
        return 1

    def num_output_tokens(self) -> int:
        return 1000

    def used_share(self) -> float:
        self.looks += 1
        if self.looks > 8:
            self.seen_often.set()
        if self.looks % 2:
            raise RuntimeError("dictionary changed size during iteration")
        return 0.25 if self.looks % 4 else 0.75


def test_a_board_shows_the_mean_of_samples_and_the_share_of_all_repetitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "PERIOD_S", 1e-4)
    with hydra_session():
        config = Composer().run([*WORDS[:2], "workload.num_requests=4"])
    workload = make_workload(config, simulated_device(config))
    board = LiveBoard()
    run = LiveRun(board, 2)
    assert board.read() is None
    shares = []
    for _ in range(2):
        watched = _Watched()
        with run.repetition(watched, workload):
            assert watched.seen_often.wait(60)
        figures = board.read()
        assert figures is not None
        shares.append(figures.share_done)
        looks = watched.looks
        assert 0 < figures.output_tokens_per_s <= 1000 / 1e-4
        assert 0.4 <= figures.unused_share <= 0.75
    assert shares == [pytest.approx((k + 0.25) / 2) for k in range(2)]
    assert watched.looks == looks, "nobody looks after the end"
    board.clear()
    assert board.read() is None

"""What a fleet under way tells of itself."""

from __future__ import annotations

from typing import Any

import pytest

from harness.compose import Composer, hydra_session
from harness.measure.record_files import KeptRecords
from harness.runs.fleet import WatchedFleet, prepare_fleet
from harness.runs.one_run import make_workload, simulated_device

NUM_PAGES = 40


@pytest.mark.parametrize("count", [3, 70])
def test_what_is_seen_of_a_fleet_is_what_its_records_say(count: int) -> None:
    words = (
        "model=tiny", "executor=simulated", "workload=system_prompts", "workload.num_requests=20",
        "kv.page_size=4", "cluster.load=per_replica", f"cluster.replicas={count}",
    )  # fmt: skip
    with hydra_session():
        config = Composer().run(words)
    device = simulated_device(config)
    sink = KeptRecords()
    workload = make_workload(config, device)
    run = prepare_fleet(config, workload, NUM_PAGES, device, sink)
    watched = WatchedFleet(run, NUM_PAGES, config.kv.page_size)
    seen: list[tuple[int, int, float]] = []
    last: Any = run.cores[-1].recorder
    decided = last.decided

    def looks(*arguments: Any) -> None:
        decided(*arguments)
        seen.append((watched.num_ended(), watched.num_output_tokens(), watched.used_share()))

    last.decided = looks
    run.run()
    assert watched.num_ended() == len(workload.requests) == len(sink.requests) == 20 * count
    assert watched.num_output_tokens() == sum(each.num_output_tokens for each in sink.requests)
    assert watched.used_share() == 0.0
    assert [ended for ended, _, _ in seen] == sorted(ended for ended, _, _ in seen)
    shares = [share for _, _, share in seen]
    ledger = [entry.token / (NUM_PAGES * 4) for entry in sink.entries]
    assert 0.3 * max(ledger) < max(shares) <= max(ledger) <= 1.0

"""Fleets by command: what is stored of one, routers of one's own, and mistakes in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.compose import Composer, hydra_session
from harness.config import ConfigError
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import Job, check_unchanged, make_job
from harness.runs.store import RunStore

SESSIONS = ("workload=chat", "workload.length_scale=0.05", "workload.num_requests=60")
SHORT = ("workload=system_prompts", "workload.num_requests=40", "cluster.load=per_replica")

OWN_ROUTER = '''
from harness.cluster.router import Replicas, RoutedRequest, Router


class Sticky(Router):
    """Sessions stay where they are; looks at all that it is told."""

    def __init__(self, replicas: Replicas, offset: int = 0) -> None:
        super().__init__(replicas)
        self.offset = offset
        self.under_way = [0] * replicas.count

    def route(self, request: RoutedRequest, now_s: float) -> int:
        known, states = self.replicas, range(self.replicas.count)
        assert self.under_way == known.num_requests
        assert [known.num_running(i) + known.num_waiting(i) for i in states] == self.under_way
        assert all((n == 0) == (m == 0) for n, m in zip(known.num_tokens, self.under_way))
        replica = (request.session_id + self.offset) % known.count
        self.under_way[replica] += 1
        return replica

    def ended(self, request: RoutedRequest, replica: int) -> None:
        self.under_way[replica] -= 1
'''


@pytest.fixture
def own_router(tmp_path: Path) -> Path:
    """`mine.py` in the current folder, with a router Sticky that has an option."""
    path = tmp_path / "mine.py"
    path.write_text(OWN_ROUTER)
    return path


def only_run(folder: Path = Path("results/single")) -> Any:
    (path,) = [path for path in folder.glob("[0-9a-f]*") if path.is_dir()]
    return RunStore(folder).find(path.name)


def test_a_fleet_leaves_rows_by_replica_that_add_up(command: Any) -> None:
    answer = command(
        *SHORT, "cluster.replicas=5", "cluster.router=prefix_aware", "repetitions=2",
        "allocator=paged_prefix", "cluster.balance_abs_threshold=1", "kv.pool_tokens=512",
    )  # fmt: skip
    assert answer.status == 0, answer
    run = only_run()
    replicas, requests, steps = (run.frame(name) for name in ("replicas", "requests", "steps"))
    assert len(replicas) == 2 * 5 and len(requests) == 2 * 5 * 40
    for repetition, summary in enumerate(run.summary):
        rows = replicas[replicas["repetition"] == repetition]
        assert rows["replica"].tolist() == list(range(5))
        for metric in ("num_requests", "prompt_tokens", "output_tokens", "cached_tokens"):
            assert rows[metric].sum() == summary[metric]
        assert rows["num_steps"].sum() == summary["num_steps"]
        most = rows["num_requests"].max() / rows["num_requests"].mean()
        assert summary["request_imbalance"] == pytest.approx(most) and most > 1
        computed = rows["computed_tokens"].sum() + summary["cached_tokens"]
        needed = summary["prompt_tokens"] + summary["output_tokens"] - summary["num_requests"]
        assert computed == needed + summary["recomputed_tokens"]
        mine = steps[steps["repetition"] == repetition]
        assert summary["utilisation"] == pytest.approx(
            np.dot(mine["token"], mine["duration_s"]) / mine["duration_s"].sum() / 512
        )
    for _, each in steps.groupby(["repetition", "replica"]):
        assert (each["start_s"].to_numpy()[1:] > each["start_s"].to_numpy()[:-1]).all()
        assert each["step"].tolist() == list(range(len(each)))


@pytest.mark.parametrize("arrivals", ["poisson", "closed_loop"])
def test_a_session_goes_on_wherever_its_next_turn_is_sent(command: Any, arrivals: str) -> None:
    hits = {}
    concurrency = ["workload.concurrency=6"] if arrivals == "closed_loop" else []
    for router in ("round_robin", "prefix_aware"):
        always = ["cluster.cache_threshold=0"] if router == "prefix_aware" else []
        answer = command(
            *SESSIONS, f"workload.arrivals={arrivals}", *concurrency,
            "cluster.replicas=4", f"cluster.router={router}", "allocator=paged_prefix",
            "kv.page_size=1", f"results_dir={router}", *always,
        )  # fmt: skip
        assert answer.status == 0, answer
        run = only_run(Path(router) / "single")
        requests = run.frame("requests")
        assert (requests["status"] == "finished").all() and len(requests) == 60
        homes = requests.groupby("session_id")["replica"].nunique()
        assert (homes.max() == 1) == (router == "prefix_aware")
        before = requests.groupby("session_id")["finish_s"].shift()
        later = before.notna()
        gaps = (requests["arrival_s"] - before)[later]
        assert gaps.to_numpy() == pytest.approx(run.config["workload"]["think_s"])
        hits[router] = run.summary[0]["prefix_hit_rate"]
    assert hits["prefix_aware"] > 1.5 * hits["round_robin"]


def test_a_router_of_ones_own_with_its_option(command: Any, own_router: Path) -> None:
    shown = {}
    for offset in (0, 1):
        answer = command(
            *SESSIONS, "cluster.replicas=3", "cluster.router=./mine.py:Sticky",
            f"+cluster.options.offset={offset}", f"results_dir=by_{offset}",
        )  # fmt: skip
        assert answer.status == 0, answer
        requests = only_run(Path(f"by_{offset}/single")).frame("requests")
        shown[offset] = requests["replica"].tolist()
        assert shown[offset] == ((requests["session_id"] + offset) % 3).tolist()


def test_an_option_is_of_the_type_that_the_router_says(command: Any, own_router: Path) -> None:
    answer = command(
        "cluster.replicas=2", "cluster.router=./mine.py:Sticky", "+cluster.options.offset=many"
    )
    assert answer.status == 2, answer
    assert "cluster.options.offset='many': expected a whole number" in answer.err


def test_a_router_is_checked_with_the_pool_that_it_will_see(command: Any, own_router: Path) -> None:
    """One that wants four pages for itself is not refused for a pool that nobody asked for."""
    own_router.write_text(
        OWN_ROUTER.replace(
            "self.offset = offset",
            "self.offset = offset\n"
            "        if replicas.pool_tokens < 4 * replicas.page_size:\n"
            "            raise ValueError(f'{replicas.pool_tokens} tokens are too few')",
        )
    )
    own = (*SESSIONS, "cluster.replicas=2", "cluster.router=./mine.py:Sticky")
    assert command(*own).status == 0
    answer = command(*own, "kv.pool_tokens=32")
    assert answer.status == 2, answer
    assert "cluster.router=./mine.py:Sticky: 32 tokens are too few" in answer.err


@pytest.mark.parametrize("edited", ["mine.py", "best_replica.py"])
def test_a_router_that_is_edited_under_way_leaves_no_numbers_under_its_old_address(
    edited: str, own_router: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_router.parent)
    monkeypatch.syspath_prepend(own_router.parent)
    Path("best_replica.py").write_text("BEST = 0\n")
    own_router.write_text(f"from best_replica import BEST\n{OWN_ROUTER}")
    with hydra_session():
        config = Composer().run(("model=tiny", "executor=simulated", "cluster.router=./mine.py"))

    def planned() -> Job:
        return make_job(config, "", Path("results"), "simulated", CodeHashes())

    job = planned()
    check_unchanged(job)
    path = Path(edited)
    path.write_text(f"{path.read_text()}# another\n")
    with pytest.raises(ConfigError, match=r"cluster\.router=\./mine\.py was edited while"):
        check_unchanged(job)
    assert planned().run_id != job.run_id


def test_an_edited_router_is_another_run(command: Any, own_router: Path) -> None:
    words = (*SHORT, "cluster.replicas=2", "cluster.router=mine.py")
    for _ in range(2):
        assert command(*words).status == 0
        own_router.write_text(OWN_ROUTER.replace("request.session_id", "request.request_id"))
    assert len(pd.read_csv("results/single/summary.csv")) == 1
    assert len([path for path in Path("results/single").glob("[0-9a-f]*") if path.is_dir()]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("executor=torch", "cluster.replicas=2"), ("cluster.replicas=2", "executor=simulated")),
        (("cluster.replicas=0",), ("cluster.replicas=0", "at least 1")),
        (
            ("cluster.replicas=2", "measure.memory_map=true"),
            ("measure.memory_map", "cluster.replicas=2"),
        ),
        (
            ("cluster.replicas=2", "measure.outcome_log=true"),
            ("measure.outcome_log", "cluster.replicas=2"),
        ),
        (("cluster.replicas=2", "cluster.router=round"), ("cluster.router=round", "round_robin")),
        (("cluster.router=least_loaded",), ("cluster.router", "cluster.replicas=2")),
        (
            ("cluster.replicas=2", "cluster.cache_threshold=0.9"),
            ("cluster.cache_threshold=0.9", "cluster.router=prefix_aware"),
        ),
        (("cluster.cache_threshold=1.5",), ("cluster.cache_threshold=1.5", "[0, 1]")),
        (("cluster.replicas=2", "cluster.router=./none.py"), ("none.py", "current directory")),
        (
            ("cluster.replicas=2", "+cluster.options.size=3"),
            ("cluster.router=round_robin", "no option 'size'"),
        ),
        (
            ("cluster.replicas=2", "cluster.load=per_replica", "workload=trace",
             "workload.format=lengths_csv", "workload.path=lengths.csv"),
            ("cluster.load=per_replica", "cluster.load=total"),
        ),
        (("cluster.load=per_replica",), ("cluster.load=per_replica", "cluster.replicas=2")),
    ],
)  # fmt: skip
def test_mistakes_end_in_a_line(
    command: Any, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    Path("lengths.csv").write_text("prompt_tokens,output_tokens\n8,4\n")
    answer = command(*words)
    assert answer.status == 2, answer
    (line,) = answer.err.strip().splitlines()
    for part in said:
        assert part in line


def test_a_router_that_sends_nowhere_is_a_failed_row(command: Any, own_router: Path) -> None:
    own_router.write_text(OWN_ROUTER.replace("return replica", "return replica + 9"))
    answer = command(*SHORT, "cluster.replicas=2", "cluster.router=mine.py:Sticky")
    assert answer.status == 1
    (row,) = pd.read_csv("results/single/summary.csv").to_dict("records")
    assert row["status"] == "failed" and "there are 0 to 1" in row["error"]
